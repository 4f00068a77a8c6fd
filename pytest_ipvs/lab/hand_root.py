"""Namespaces and the private root of nodes and pods.

Every function here acts on the calling process, so its callers have one thread and know where
they stand: namespaces belong to threads, and /proc/self is the first thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "HOME",
    "NEW_IPC",
    "NEW_MOUNT",
    "NEW_NET",
    "NEW_PID",
    "NEW_UTS",
    "build_root",
    "die_with_parent",
    "enter",
    "fork_into_new_pids",
    "inside_net",
    "mount",
    "new_net",
    "set_hostname",
    "unshare",
]

NEW_MOUNT, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_PID, NEW_NET = 0x20000000, 0x40000000

HOME = "/run/root"
"""Home of root in a node: not /root, which may hold the Python that runs us."""

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = (
    1,
    32,
    4096,
    8192,
    16384,
    1 << 18,
)
_NOT_BOUND = {
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "etc",
    "var",
    "boot",
    "lost+found",
    "mnt",
    "media",
    ".root",
}
_PASSWD = f"root:x:0:0:root:{HOME}:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def enter(namespace: int, kind: int = 0) -> None:
    """setns(2) by file descriptor."""
    _check(_libc.setns(namespace, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()),
        f"mount {source} on {target}",
    )


def set_hostname(name: str) -> None:
    """sethostname(2), in the UTS namespace of the caller."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname")


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends."""
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)


def new_net() -> int:
    """A file descriptor of a fresh network namespace; the caller stays in its own."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(NEW_NET)
        fresh = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        enter(here, NEW_NET)
    finally:
        os.close(here)
    return fresh


@contextmanager
def inside_net(namespace: int) -> Iterator[None]:
    """Runs the block in another network namespace: sockets made there stay there."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace, NEW_NET)
        try:
            yield
        finally:
            enter(here, NEW_NET)
    finally:
        os.close(here)


def fork_into_new_pids(child: Callable[[], None]) -> int:
    """Forks a first process of a new PID namespace; returns its PID. ``child`` must not return."""
    here = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(NEW_PID)
        try:
            pid = os.fork()
            if pid == 0:
                _never_return(child)
        finally:
            # Only for children to come; without this all of them would share that namespace.
            enter(here, NEW_PID)
    finally:
        os.close(here)
    return pid


def _never_return(child: Callable[[], None]) -> None:
    try:
        child()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(70)


def _bind(source: str, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    mount(source, str(target), "", _MS_BIND | _MS_REC)
    try:
        # What belongs to the machine is only read by its nodes.
        mount("", str(target), "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    except OSError:
        pass


def _build_etc(root: Path, hostname: str, address: str | None) -> None:
    etc = root / "etc"
    etc.mkdir()
    own = {
        "hostname": f"{hostname}\n",
        "passwd": _PASSWD,
        "shells": "/bin/sh\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n"
        + (f"{address} {hostname}\n" if address else ""),
    }
    if not Path("/.etc").is_dir():
        _bind("/etc", root / ".etc")
    for entry in Path("/etc").iterdir():
        if entry.name not in own:
            target = entry.readlink() if entry.is_symlink() else Path("/.etc", entry.name)
            (etc / entry.name).symlink_to(target)
    for name, text in own.items():
        (etc / name).write_text(text)


def build_root(
    hostname: str, address: str | None = None, files: dict[str, str] | None = None
) -> None:
    """Gives the caller (first process of new mount and PID namespaces) a root of its own.

    The machine's directories are there read-only, while /, /etc, /tmp, /run and /var are private
    and empty but for what a system needs. ``files`` are written where nothing else is mounted.
    """
    mount("", "/", "", _MS_REC | _MS_PRIVATE)
    # Anything that exists will do: only this namespace sees it, and only until it is moved.
    root = Path("/tmp")
    mount("tmpfs", str(root), "tmpfs", 0, "mode=755")
    for entry in Path("/").iterdir():
        if entry.name in _NOT_BOUND:
            continue
        if entry.is_symlink():
            (root / entry.name).symlink_to(entry.readlink())
        elif entry.is_dir():
            _bind(str(entry), root / entry.name)
    for name in ("proc", "sys", "dev", "run", "var", "var/log", "var/lib", "mnt", "run/root"):
        (root / name).mkdir(mode=0o700 if name == "run/root" else 0o755)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir()
        (root / name).chmod(0o1777)
    (root / "var/run").symlink_to("/run")
    _build_etc(root, hostname, address)
    mount("/dev", str(root / "dev"), "", _MS_BIND | _MS_REC)
    mount("proc", str(root / "proc"), "proc")
    try:
        mount("sysfs", str(root / "sys"), "sysfs")
    except OSError:
        mount("/sys", str(root / "sys"), "", _MS_BIND | _MS_REC)
    for path, text in (files or {}).items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if text.startswith("#!") else 0o644)
    os.chdir(root)
    mount(".", "/", "", _MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    set_hostname(hostname)
