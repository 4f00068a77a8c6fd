"""The machine as a small virtual machine: QEMU, a distribution's kernel and our own initramfs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pytest_ipvs.lab import image
from pytest_ipvs.lab.hand import DOOR_BASE, MACHINE_ADDRESS, PORT_NAME
from pytest_ipvs.lab.install import (
    DEFAULT_SERIES,
    Kernel,
    cache_directory,
    fetch_kernel,
    missing_packages,
    which,
)
from pytest_ipvs.lab.machine import LabError, Progress
from pytest_ipvs.lab.machine_rpc import Child, MachineBase

__all__ = ["VirtualMachine", "kvm_worth_a_try"]

DOORS = 24
"""Nodes and clients that ssh can reach at a time."""
_FIRST_MARKER = b"pytest-ipvs: kernel is up"
_PROBE_LIMIT = 15.0
# Of 2 to 4 s on an idle host; a busy one may take ten times as long.
_MARKER_LIMIT = 60.0
_BOOT_LIMIT = 120.0
_TRIES = 3
# The longest path that a unix socket takes.
_SOCKET_PATH = 107


def kvm_worth_a_try(cpuinfo: Path = Path("/proc/cpuinfo"), device: Path = Path("/dev/kvm")) -> bool:
    """False where KVM can't work: no processor flag for it, or a device that we can't open.

    True proves nothing: under some nested hypervisors the device opens and no guest ever starts.
    """
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return False
    if not words & {"vmx", "svm"}:
        return False
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _probe_file() -> Path:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return cache_directory() / f"kvm-{boot}"


def known_kvm() -> bool | None:
    """What a probe said since this host booted, or None."""
    try:
        return _probe_file().read_text() == "works"
    except OSError:
        return None


def remember_kvm(works: bool) -> None:
    """Keeps a probe's result until the host boots again."""
    path = _probe_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob("kvm-*"):
        old.unlink(missing_ok=True)
    path.write_text("works" if works else "fails")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            holder = stack.enter_context(socket.socket())
            holder.bind(("127.0.0.1", 0))
            ports.append(holder.getsockname()[1])
        return ports


class VirtualMachine(MachineBase):
    """See :class:`~pytest_ipvs.lab.machine.Machine`."""

    def __init__(
        self,
        directory: Path,
        *,
        series: str | None = None,
        progress: Progress | None = None,
        accelerator: str = "auto",
        memory: int = 1024,
        processors: int = 2,
        programs: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, progress)
        self._series = series or DEFAULT_SERIES
        self._accelerator = accelerator
        self._memory = memory
        self._processors = processors
        self._programs = programs
        self._child: Child | None = None
        self._scratch: str | None = None
        self.kind = "vm-tcg"

    def start(self) -> None:
        """See :class:`~pytest_ipvs.lab.machine.Machine`."""
        missing = missing_packages()
        if missing:
            raise LabError(
                f"the lab needs the packages {' '.join(missing)}: run"
                " `python -m pytest_ipvs.lab install`"
            )
        kernel = fetch_kernel(self._series, self._progress)
        initramfs = image.build(kernel, self._progress, self._programs)
        if self._wants_kvm():
            if self._boot(kernel, initramfs, kvm=True) is None:
                self.kind = "vm-kvm"
                remember_kvm(True)
                return
            remember_kvm(False)
            self._progress("KVM did not start a guest: using software emulation")
        reason: str | None = ""
        for attempt in range(1, _TRIES + 1):
            self._progress(f"booting kernel {kernel.release} under software emulation")
            reason = self._boot(kernel, initramfs, kvm=False)
            if reason is None:
                self.kind = "vm-tcg"
                return
            self._progress(f"the guest did not come up (try {attempt} of {_TRIES}): {reason}")
        raise LabError(
            f"the lab's guest did not come up in {_TRIES} tries: {reason}; see"
            f" {self.directory / 'console.log'}"
        )

    def _wants_kvm(self) -> bool:
        if self._accelerator != "auto":
            return self._accelerator == "kvm"
        return kvm_worth_a_try() and known_kvm() is not False

    def _boot(self, kernel: Kernel, initramfs: Path, *, kvm: bool) -> str | None:
        """Boots once; None when the hand answers, else the reason why it did not."""
        console = self.directory / "console.log"
        console.unlink(missing_ok=True)
        path = self.directory / "hand.sock"
        if len(os.fsencode(path)) > _SOCKET_PATH:
            self._scratch = tempfile.mkdtemp(prefix="pytest-ipvs-vm-")
            path = Path(self._scratch, "hand")
        path.unlink(missing_ok=True)
        ports = _free_ports(DOORS)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen(1)
                argv = self._command(kernel, initramfs, console, path, ports, kvm=kvm)
                self._child = Child(argv, log=self.directory / "qemu.log")
                reason = self._await(listener, console, kvm=kvm)
        except BaseException:
            self.stop()
            raise
        if reason is not None:
            self.stop()
            return reason
        # Connected, it is needed no more; nobody would remove it if we were killed.
        path.unlink(missing_ok=True)
        self._drop_scratch()
        self._ports = dict(enumerate(ports))
        # Timelines are made of times from both sides.
        self.call("set_clock", now=time.time())
        return None

    def _await(self, listener: socket.socket, console: Path, *, kvm: bool) -> str | None:
        assert self._child is not None
        started = time.monotonic()
        listener.settimeout(0.2)
        attached = False
        while not self._ready.is_set():
            waited = time.monotonic() - started
            if self._child.ended.is_set():
                return f"QEMU ended with status {self._child.returncode}{self._last_words(console)}"
            limit = _PROBE_LIMIT if kvm else _MARKER_LIMIT
            if waited > limit and _FIRST_MARKER not in _read(console):
                return f"no sign of life within {limit:g} s"
            if waited > _BOOT_LIMIT:
                return f"no answer within {_BOOT_LIMIT:g} s{self._last_words(console)}"
            if attached:
                self._ready.wait(0.2)
                continue
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(None)
            self._attach(connection)
            attached = True
        return None

    def _last_words(self, console: Path) -> str:
        for path in (self.directory / "qemu.log", console):
            lines = _read(path).decode(errors="replace").splitlines()
            for line in reversed(lines):
                if "panic" in line or "error" in line.lower() or "could not" in line.lower():
                    return f" ({line.strip()})"
        return ""

    def _command(
        self,
        kernel: Kernel,
        initramfs: Path,
        console: Path,
        hand: Path,
        ports: list[int],
        *,
        kvm: bool,
    ) -> list[str]:
        qemu = which("qemu-system-x86_64")
        assert qemu is not None
        forwards = "".join(
            f",hostfwd=tcp:127.0.0.1:{port}-{MACHINE_ADDRESS}:{DOOR_BASE + door}"
            for door, port in enumerate(ports)
        )
        # 6.12 crashes now and then when QEMU 7.2 emulates cmpxchg16b.
        processor = "host" if kvm else "max" if kernel.release < "6.12" else "max,-cx16"
        # At random addresses QEMU would translate a program anew at each of its starts, which then
        # take four times as long.
        append = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"
        append += " nokaslr norandmaps"
        return [
            qemu,
            # Not microvm, which boots in half the time: without HPET or PM timer a kernel can't
            # calibrate its clock on a busy host, and hangs.
            *("-M", "pc", "-accel", "kvm" if kvm else "tcg,thread=multi,tb-size=256"),
            *("-cpu", processor, "-smp", str(self._processors), "-m", str(self._memory)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(kernel.vmlinux or kernel.vmlinuz), "-initrd", str(initramfs)),
            *("-append", append),
            *("-chardev", f"file,id=console,path={_escape(console)}", "-serial", "chardev:console"),
            *(
                "-netdev",
                f"user,id=net,ipv6=off{forwards}",
                "-device",
                "virtio-net-pci,netdev=net,romfile=",
            ),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=hand,path={_escape(hand)}"),
            *("-device", f"virtserialport,chardev=hand,name={PORT_NAME}"),
        ]

    def stop(self) -> None:
        """See :class:`~pytest_ipvs.lab.machine.Machine`."""
        if self._child is not None:
            self._child.end()
            self._child = None
        self._detach()
        self._gone.set()
        self._drop_scratch()

    def _drop_scratch(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None


def _escape(path: Path) -> str:
    return str(path).replace(",", ",,")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
