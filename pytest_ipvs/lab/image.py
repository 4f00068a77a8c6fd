"""Builds the guest's initramfs out of this host's own programs, as a plain user, in seconds.

Programs and Python come with the libraries that ``ldd`` names for them, at the paths they have
here. The result is uncompressed (emulated processors uncompress slowly) and kept in the cache
under a hash of all that went into it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest_ipvs
from pytest_ipvs.lab import image_python
from pytest_ipvs.lab.install import Kernel, cache_directory, which
from pytest_ipvs.lab.machine import LabError, Progress

__all__ = ["Tree", "build", "module_closure"]

# Programs of their own package; everything else a shell script wants comes from busybox.
_PROGRAMS = (
    "busybox dash ip ss tc ipvsadm ipset conntrack kmod dropbear dropbearkey"
    " xtables-legacy-multi xtables-nft-multi ssh ssh-keygen"
)
_OPTIONAL = ("ss", "tc", "xtables-legacy-multi", "xtables-nft-multi")
_KMOD_NAMES = ("modprobe", "lsmod", "insmod", "rmmod", "depmod", "modinfo")
_XTABLES_NAMES = tuple(
    f"{family}{suffix}"
    for family in ("iptables", "ip6tables")
    for suffix in ("", "-save", "-restore")
)
# Busybox must not hide these: its ip knows no namespaces, its shell is slower than dash.
_NOT_BUSYBOX = {"busybox", "ip", "sh", "ash", "dash", "init", "linuxrc", "tc", "ipcalc", "python3"}

_MODULES = (
    "virtio_pci virtio_mmio virtio_net virtio_console virtio-rng"
    " veth bridge br_netfilter dummy tun"
    " nf_conntrack nf_conntrack_netlink nf_nat nfnetlink nf_tables nft_compat nft_chain_nat nft_nat"
    " nft_masq nft_ct nft_counter nft_redir nft_reject nft_reject_inet nft_limit nft_log nft_fib"
    " nft_fib_inet nft_numgen nft_hash nft_objref nft_queue nft_quota nft_connlimit"
    " ip_tables iptable_nat iptable_filter iptable_mangle iptable_raw"
    " ip6_tables ip6table_nat ip6table_filter ip6table_mangle ip6table_raw"
    " ipt_REJECT ip6t_REJECT xt_nat xt_tcpudp xt_comment xt_mark xt_connmark xt_conntrack xt_state"
    " xt_MASQUERADE xt_REDIRECT xt_addrtype xt_multiport xt_set xt_statistic xt_recent xt_limit"
    " xt_physdev xt_nfacct xt_ipvs xt_CT xt_LOG xt_TCPMSS xt_hashlimit xt_u32 xt_NFLOG"
    " ip_set ip_set_bitmap_ip ip_set_bitmap_port ip_set_hash_ip ip_set_hash_ipport"
    " ip_set_hash_ipportip ip_set_hash_ipportnet ip_set_hash_net ip_set_hash_netport"
    " ip_set_hash_netiface ip_set_hash_ipmark ip_set_list_set"
    " ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_lblc ip_vs_lblcr ip_vs_dh ip_vs_sh"
    " ip_vs_sed ip_vs_nq ip_vs_fo ip_vs_ovf ip_vs_mh ip_vs_ftp"
    " sctp sch_netem sch_tbf sch_ingress cls_u32 act_police overlay"
)
_NEEDED_MODULES = {"ip_vs", "ip_vs_rr", "veth", "bridge", "dummy", "nf_conntrack", "nf_nat"}

_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nnogroup:x:65534:\ntty:x:5:\n",
    "shells": "/bin/sh\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "lab\n",
    "resolv.conf": "",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "os-release": 'ID=pytest-ipvs-lab\nNAME="pytest-ipvs lab"\nPRETTY_NAME="pytest-ipvs lab"\n',
}
# kube-proxy and ipvsadm fail without these, quietly; used where the host has none.
_PROTOCOLS = "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6 41 IPv6\nsctp 132 SCTP\n"
_SERVICES = "ssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n"

_INIT = """#!/bin/dash
# A copy of the root mount on top of itself: a node's own root can only be moved over a mount that
# has a parent, which the initramfs lacks.
cd /
busybox mount --bind / /.root && cd /.root && busybox mount --move . / && exec busybox chroot . \\
    /init2
"""
_INIT2 = """#!/bin/dash
# The guest's first process: mounts, loads the modules, becomes the hand.
cd /
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
echo pytest-ipvs: kernel is up
busybox mkdir -p /dev/pts /dev/shm
busybox mount -t devpts -o mode=620,gid=5 devpts /dev/pts
modprobe -q -a virtio_pci virtio_mmio virtio_console virtio_net virtio-rng
modprobe -q -a @MODULES@ &
export PYTHONPATH=@PACKAGE@
exec @PYTHON@ -S -m pytest_ipvs.lab.hand --machine
"""
# Loaded at boot beside the start of Python; the rest is loaded when first used.
_BOOT_MODULES = (
    "veth bridge dummy ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_sh ip_vs_mh nf_conntrack nf_nat"
    " nf_conntrack_netlink ip_set ip_set_hash_ip ip_set_hash_ipport ip_set_hash_ipportip"
    " ip_set_hash_ipportnet ip_set_bitmap_port xt_set xt_comment xt_mark xt_conntrack"
    " xt_MASQUERADE xt_addrtype xt_tcpudp xt_nat"
)


@dataclass(slots=True)
class Tree:
    """The files of an image, by their path inside: taken from here, to compile, texts, links."""

    files: dict[str, Path] = field(default_factory=dict)
    compiled: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)

    def add(self, path: Path) -> None:
        """Puts a file of this host at the same place, following links on the way there."""
        real = Path(os.path.realpath(path.parent), path.name)
        inside = str(real)
        if inside in self.files or inside in self.links:
            return
        if real.is_symlink():
            target = real.readlink()
            self.links[inside] = str(target)
            self.add(real.parent / target)
        else:
            self.files[inside] = real

    def text(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Puts a text at an absolute path."""
        self.texts[path] = (content.encode() if isinstance(content, str) else content, mode)

    def digest(self) -> str:
        """A hash over everything that the image would hold, by size and time for host files."""
        seen = hashlib.sha256()
        for inside, path in sorted((self.files | self.compiled).items()):
            state = path.stat()
            seen.update(f"{inside} {state.st_size} {state.st_mtime_ns}\n".encode())
        for inside, (content, mode) in sorted(self.texts.items()):
            seen.update(f"{inside} {mode} {hashlib.sha256(content).hexdigest()}\n".encode())
        for inside, target in sorted(self.links.items()):
            seen.update(f"{inside} -> {target}\n".encode())
        seen.update("\n".join(sorted(self.directories)).encode())
        return seen.hexdigest()[:24]

    def write(self, target: Path) -> None:
        """Writes the tree as a "newc" cpio archive (kernel: buffer-format.rst)."""
        directories = {"/dev", *self.directories}
        for inside in (*self.files, *self.compiled, *self.texts, *self.links):
            directories.update(str(parent) for parent in Path(inside).parents)
        directories.discard("/")
        # A directory that is a link here (/bin) must not be made as a directory as well.
        directories -= set(self.links)
        with target.open("wb") as archive:
            number = 0

            def member(
                inside: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)
            ) -> None:
                nonlocal number
                number += 1
                name = inside.lstrip("/").encode() + b"\0"
                fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
                header = b"070701" + b"".join(b"%08X" % value for value in fields) + name
                archive.write(header + b"\0" * (-len(header) % 4))
                archive.write(data + b"\0" * (-len(data) % 4))

            for inside in sorted(directories):
                member(inside, stat.S_IFDIR | (0o700 if inside == "/root" else 0o755), b"")
            member("/dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))
            for inside, link in sorted(self.links.items()):
                member(inside, stat.S_IFLNK | 0o777, link.encode())
            for inside, (content, mode) in sorted(self.texts.items()):
                member(inside, stat.S_IFREG | mode, content)
            for inside, path in sorted(self.files.items()):
                executable = 0o755 if os.access(path, os.X_OK) else 0o644
                member(inside, stat.S_IFREG | executable, path.read_bytes())
            for inside, path in sorted(self.compiled.items()):
                member(inside, stat.S_IFREG | 0o644, image_python.compiled(path))
            member("TRAILER!!!", 0, b"")


def libraries(programs: Iterable[Path]) -> set[Path]:
    """The shared libraries of all these programs and plugins, by ``ldd``."""
    paths = [str(path) for path in programs]
    done = subprocess.run(
        ["ldd", *paths],
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C"} | os.environ,
    )
    missing = re.search(r"^\s*(\S+) => not found", done.stdout, re.MULTILINE)
    if missing:
        raise LabError(f"library {missing[1]}, which the lab's programs need, is not on this host")
    found = re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", done.stdout, re.MULTILINE)
    return {Path(path) for path in found}


def module_closure(dependencies: str, wanted: Iterable[str]) -> set[str]:
    """From the text of modules.dep: files of the wanted modules and of all they need.

    Modules that the kernel does not have (built in, or of another series) are left out.
    """
    needs: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        names[path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")] = path
    found: set[str] = set()
    for name in wanted:
        path = names.get(name.replace("-", "_"), "")
        if path:
            found.update((path, *needs[path]))
    return found


def _without_symbols(path: Path) -> Path:
    """A copy of a large library without its debugging symbols, if ``strip`` is here to make it.

    A Python that was built by hand is mostly symbols, which each boot would unpack.
    """
    state = path.stat()
    strip = which("strip")
    if state.st_size < 8 << 20 or strip is None:
        return path
    directory = cache_directory() / "stripped"
    key = f"{path} {state.st_size} {state.st_mtime_ns}".encode()
    copy = directory / hashlib.sha256(key).hexdigest()[:24]
    if not copy.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            made = Path(scratch, "copy")
            done = subprocess.run(
                [strip, "--strip-unneeded", "-o", str(made), str(path)],
                capture_output=True,
                check=False,
            )
            if done.returncode:
                return path
            made.chmod(state.st_mode & 0o755)
            made.rename(copy)
    return copy


def _add_modules(tree: Tree, kernel: Kernel, scratch: Path) -> None:
    dependencies = (kernel.modules / "modules.dep").read_text()
    builtin = (kernel.modules / "modules.builtin").read_text().replace("-", "_")
    chosen = module_closure(dependencies, _MODULES.split())
    have = {path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_") for path in chosen}
    for name in sorted(_NEEDED_MODULES - have):
        if f"/{name}.ko" not in builtin:
            raise LabError(f"kernel {kernel.release} has no module {name}")
    base = f"/usr/lib/modules/{kernel.release}"
    staged = scratch / "lib" / "modules" / kernel.release
    for path in chosen:
        link = staged / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(kernel.modules / path)
        tree.files[f"{base}/{path}"] = kernel.modules / path
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (kernel.modules / name).exists():
            (staged / name).symlink_to(kernel.modules / name)
    subprocess.run(
        [which("depmod") or "depmod", "-b", str(scratch), kernel.release],
        check=True,
        capture_output=True,
    )
    for index in staged.glob("modules.*"):
        if index.name.endswith((".bin", ".dep", ".alias", ".softdep", ".symbols", ".builtin")):
            tree.text(f"{base}/{index.name}", index.read_bytes())


def _add_programs(tree: Tree, kernel: Kernel, more: Sequence[str]) -> list[Path]:
    programs = []
    for name in (*_PROGRAMS.split(), *more):
        found = which(name)
        if found is None:
            if name in _OPTIONAL:
                continue
            if name in more:
                raise LabError(f"{name} is not installed, and the lab is to have it")
            raise LabError(f"{name} is not installed: run `python -m pytest_ipvs.lab install`")
        real = Path(os.path.realpath(found))
        programs.append(real)
        tree.add(real)
        for directory in ("/usr/bin", "/usr/sbin"):
            if f"{directory}/{name}" != str(real):
                tree.links[f"{directory}/{name}"] = str(real)
    for name in _KMOD_NAMES:
        tree.links[f"/usr/sbin/{name}"] = "/usr/bin/kmod"
    # Where the kernel still has it, the older back-end loads kube-proxy's rules twice as fast.
    legacy = (
        "/ip_tables.ko" in (kernel.modules / "modules.dep").read_text()
        and which("xtables-legacy-multi") is not None
    )
    backend = "xtables-legacy-multi" if legacy else "xtables-nft-multi"
    for command in _XTABLES_NAMES:
        tree.links[f"/usr/sbin/{command}"] = backend
        for kind in ("legacy", "nft"):
            if which(f"xtables-{kind}-multi"):
                tree.links[f"/usr/sbin/{command.replace('tables', f'tables-{kind}', 1)}"] = (
                    f"xtables-{kind}-multi"
                )
    plugins = [*Path("/usr/lib").glob("*/xtables/*.so"), *Path("/usr/lib/xtables").glob("*.so")]
    for plugin in plugins:
        tree.add(plugin)
    busybox = which("busybox") or "busybox"
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        if applet in _NOT_BUSYBOX:
            continue
        taken = {f"{place}/{applet}" for place in ("/usr/bin", "/usr/sbin")}
        if not taken & (set(tree.files) | set(tree.links)):
            tree.links[f"/usr/bin/{applet}"] = "busybox"
    tree.links["/usr/bin/sh"] = "dash"
    return [*programs, *[plugin for plugin in plugins if not plugin.is_symlink()]]


def build(kernel: Kernel, progress: Progress | None = None, programs: Sequence[str] = ()) -> Path:
    """The image for a kernel, from the cache if nothing that goes into it changed.

    ``programs`` of this host go in besides those that the lab needs.
    """
    tree = Tree()
    for name in ("bin", "sbin", "lib", "lib64"):
        tree.links[f"/{name}"] = f"usr/{name}"
    tree.directories |= {"/usr/lib64", "/proc", "/sys", "/run", "/tmp", "/root", "/.root", "/var"}
    binaries = _add_programs(tree, kernel, programs)
    python, extensions = image_python.add(tree)
    for library in libraries([*binaries, *extensions]):
        tree.add(library)
    for inside, path in tree.files.items():
        tree.files[inside] = _without_symbols(path)
    package = Path(pytest_ipvs.__file__).parent
    image_python.add_package(tree, package, "/usr/lib/pytest-ipvs")
    for name, text in _ETC.items():
        tree.text(f"/etc/{name}", text)
    for name, text in (("protocols", _PROTOCOLS), ("services", _SERVICES)):
        here = Path("/etc", name)
        tree.text(f"/etc/{name}", here.read_bytes() if here.exists() else text)
    tree.text("/init", _INIT, 0o755)
    init2 = _INIT2.replace("@PYTHON@", python).replace("@PACKAGE@", "/usr/lib/pytest-ipvs")
    tree.text("/init2", init2.replace("@MODULES@", _BOOT_MODULES), 0o755)
    images = cache_directory() / "images"
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=images, prefix=".build-") as scratch:
        _add_modules(tree, kernel, Path(scratch))
        image = images / f"{tree.digest()}.cpio"
        if not image.exists():
            if progress:
                progress("building the guest's image")
            tree.write(Path(scratch, "image"))
            Path(scratch, "image").rename(image)
    os.utime(image)
    for old in sorted(images.glob("*.cpio"), key=lambda path: path.stat().st_mtime)[:-3]:
        old.unlink(missing_ok=True)
    return image
