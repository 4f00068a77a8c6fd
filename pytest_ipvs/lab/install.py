"""Gets what the lab needs from the distribution: its tools and a kernel to boot.

Tools are installed with apt when we are root; the kernel's package is only unpacked into a cache
directory, never installed. Nothing here names a download host: apt's own lists decide.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_ipvs.lab.image_vmlinux import extract_vmlinux
from pytest_ipvs.lab.machine import LabError, Progress

__all__ = [
    "DEFAULT_SERIES",
    "Kernel",
    "cache_directory",
    "fetch_kernel",
    "find_kernel",
    "install",
    "kernel_packages",
    "missing_packages",
]

DEFAULT_SERIES = "6.1"
"""The series that booted every time under software emulation; 6.12 crashes now and then."""

SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
"""The suite of Debian that has a series, for hosts whose own package lists lack it."""
NEWEST = "trixie-backports"
"""The suite for all other series: the newer ones."""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Program that must be found -> Debian's package that has it.
_NAMESPACE_TOOLS = {
    "ip": "iproute2",
    "ipvsadm": "ipvsadm",
    "ipset": "ipset",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "modprobe": "kmod",
    "dropbear": "dropbear-bin",
    "dropbearkey": "dropbear-bin",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "dash": "dash",
    "sysctl": "procps",
}
_MACHINE_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
}
# What tests of the lab use besides; nobody needs these to run it.
_TEST_TOOLS = {"kubectl": "kubernetes-client", "cpio": "cpio"}
_SYSTEM_DIRECTORIES = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel unpacked in the cache."""

    release: str
    """``uname -r``, e.g. "6.1.0-56-cloud-amd64"."""
    vmlinuz: Path
    vmlinux: Path | None
    """The same uncompressed, which boots faster; None if it could not be extracted."""
    root: Path
    """Holds lib/modules/RELEASE with depmod's files."""

    @property
    def modules(self) -> Path:
        """The directory that is /lib/modules/RELEASE inside."""
        return self.root / "lib" / "modules" / self.release


def which(program: str) -> str | None:
    """The program's path, also in the directories that only root has in its PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_DIRECTORIES}")


def cache_directory() -> Path:
    """Where kernels and images are kept: ``PYTEST_IPVS_CACHE`` or the XDG cache directory."""
    chosen = os.environ.get("PYTEST_IPVS_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pytest-ipvs"


def missing_packages(*, machine: bool = True, tests: bool = False) -> tuple[str, ...]:
    """Debian packages whose programs are not found.

    ``machine`` adds those of the VM, ``tests`` those of the lab's own tests.
    """
    tools = _NAMESPACE_TOOLS | (_MACHINE_TOOLS if machine else {}) | (_TEST_TOOLS if tests else {})
    return tuple(sorted({package for program, package in tools.items() if not which(program)}))


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def find_kernel(series: str = DEFAULT_SERIES) -> Kernel | None:
    """The newest unpacked kernel of the series, or None."""
    root = cache_directory() / "kernels"
    names = [path.name for path in root.glob(f"{series}.*") if (path / "complete").exists()]
    if not names:
        return None
    release = max(names, key=_version_key)
    directory = root / release
    vmlinux = directory / "vmlinux"
    return Kernel(
        release=release,
        vmlinuz=directory / "vmlinuz",
        vmlinux=vmlinux if vmlinux.exists() else None,
        root=directory,
    )


def kernel_packages(names: Iterable[str], series: str) -> list[str]:
    """From package names the kernel images of a series, best first.

    The variant for clouds is half as large and has all that IPVS needs, so it comes first.
    """
    wanted = re.compile(rf"linux-image-({re.escape(series)}\.\d\S*?)(-cloud)?-amd64")
    found = [
        (match[2] is not None, _version_key(match[1]), name)
        for name in names
        if (match := wanted.fullmatch(name)) and not match[1].endswith("-rt")
    ]
    return [name for _, _, name in sorted(found, reverse=True)]


def _run(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LabError(
            f"{argv[0]} is not here: the lab's kernel comes from a Debian package, so it needs a"
            " Debian or a derivative of it"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise LabError(f"`{' '.join(argv)}` failed: {said[-1] if said else 'it said nothing'}")
    return done.stdout


class _Apt:
    """apt's client, with this host's package lists or with those of one other suite alone.

    ``directory`` then holds these lists; nothing of the host's is touched, and root is not needed.
    """

    def __init__(
        self, progress: Progress, *, suite: str = "", mirror: str = "", directory: Path = Path()
    ) -> None:
        self._progress = progress
        self._suite = suite
        self._options: list[str] = []
        if suite:
            sources = directory / "sources.list"
            signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
            sources.write_text(f"deb {signed}{mirror} {suite} main\n")
            (directory / "lists" / "partial").mkdir(parents=True)
            for name, value in (
                ("Dir::Etc::SourceList", sources),
                ("Dir::Etc::SourceParts", "/dev/null"),
                ("Dir::State::Lists", directory / "lists"),
                ("Dir::Cache", directory),
                ("Acquire::Languages", "none"),
            ):
                self._options += ["-o", f"{name}={value}"]

    def mirror(self) -> str:
        """Where this host gets Debian's own packages from; "" where the lists do not say."""
        wanted = ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
        told = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted])
        return (told.split() or [""])[0]

    def kernels(self, series: str) -> list[str]:
        """The series' images that the lists have, best first."""
        names = _run(["apt-cache", *self._options, "pkgnames", "linux-image-"]).split()
        return kernel_packages(names, series)

    def refresh(self) -> None:
        """Get the lists anew."""
        if not self._suite and os.geteuid() != 0:
            raise LabError(
                "apt's package lists are empty or out of date: run `apt-get update` as root, then"
                " `python -m pytest_ipvs.lab install` again"
            )
        of_suite = f" of the suite {self._suite}" if self._suite else ""
        self._progress(f"updating the package lists{of_suite}")
        _run(["apt-get", *self._options, "update", "-q"])

    def download(self, name: str, directory: Path) -> Path:
        """A package's file in that directory."""
        self._progress(f"downloading {name}")
        _run(["apt-get", *self._options, "download", "-q", name], cwd=directory)
        return next(directory.glob(f"{name}_*.deb"))

    def kernel(self, name: str, directory: Path) -> list[Path]:
        """An image and the packages that it only names, as those of newer kernels do."""
        image = self.download(name, directory)
        needed = _run(["dpkg-deb", "-f", str(image), "Depends"])
        parts = re.findall(r"(?<!\S)linux-(?:base|binary|modules)-[^\s,]+", needed)
        return [image, *(self.download(part, directory) for part in parts)]


def _unpack(packages: Sequence[Path], progress: Progress) -> Kernel:
    """Unpacks a kernel's packages into the cache; atomic, so that a broken one never is there."""
    root = cache_directory() / "kernels"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as scratch:
        tree = Path(scratch, "tree")
        for package in packages:
            _run(["dpkg-deb", "-x", str(package), str(tree)])
        # Newer packages have it beside the modules.
        found = (*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz"))
        if not found:
            raise LabError(f"{packages[0].name} has no vmlinuz")
        image = found[0]
        beside = image.name == "vmlinuz"
        release = image.parent.name if beside else image.name.removeprefix("vmlinuz-")
        bases = (tree / base / release for base in ("lib/modules", "usr/lib/modules"))
        modules = next((path for path in bases if any(path.rglob("ip_vs.ko*"))), None)
        if modules is None:
            raise LabError(f"{packages[0].name} has no ip_vs module")
        ready = Path(scratch, "ready")
        ready.mkdir()
        shutil.move(image, ready / "vmlinuz")
        (ready / "lib" / "modules").mkdir(parents=True)
        shutil.move(modules, ready / "lib" / "modules" / release)
        _run([which("depmod") or "depmod", "-b", str(ready), release])
        plain = extract_vmlinux((ready / "vmlinuz").read_bytes())
        if plain is None:
            progress(f"kernel {release} could not be uncompressed: it will boot more slowly")
        else:
            (ready / "vmlinux").write_bytes(plain)
        (ready / "complete").touch()
        target = root / release
        if target.exists():
            shutil.rmtree(target)
        ready.rename(target)
    series = ".".join(release.split(".")[:2])
    kernel = find_kernel(series)
    assert kernel is not None
    return kernel


def fetch_kernel(series: str, progress: Progress) -> Kernel:
    """The newest kernel of a series, from the cache or by apt's client; :class:`LabError` else.

    A series that this host's package lists lack comes from the suite of Debian that has it, on the
    mirror that the host uses.
    """
    kernel = find_kernel(series)
    if kernel is not None:
        return kernel
    with tempfile.TemporaryDirectory(prefix="pytest-ipvs-kernel-") as scratch:
        directory = Path(scratch)
        apt = _Apt(progress)
        packages = apt.kernels(series)
        if not packages and not apt.mirror():
            apt.refresh()
            packages = apt.kernels(series)
        suite, mirror = SUITES.get(series, NEWEST), apt.mirror()
        if not packages and mirror:
            apt = _Apt(progress, suite=suite, mirror=mirror, directory=directory)
            apt.refresh()
            packages = apt.kernels(series)
        if not packages:
            nor = f"neither has Debian's suite {suite}" if mirror else "they name no Debian mirror"
            raise LabError(
                f"the package lists have no linux-image-{series}.*-amd64, and {nor}: choose"
                " another kernel series"
            )
        return _fetch(apt, packages[:3], series, directory, progress)


def _fetch(
    apt: _Apt, names: Sequence[str], series: str, directory: Path, progress: Progress
) -> Kernel:
    """The first of these packages that can be had and unpacked."""
    refreshed = False
    reasons = []
    for name in names:
        try:
            packages = apt.kernel(name, directory)
        except LabError as error:
            reasons.append(str(error))
            if refreshed or os.geteuid() != 0:
                continue
            # Lists older than the mirror name files that are gone.
            apt.refresh()
            refreshed = True
            try:
                packages = apt.kernel(name, directory)
            except LabError:
                continue
        progress(f"unpacking {name}")
        try:
            return _unpack(packages, progress)
        except LabError as error:
            reasons.append(str(error))
    raise LabError(f"no kernel of series {series} could be had: {reasons[-1]}")


def install(
    progress: Progress = print,
    *,
    series: Sequence[str] = (DEFAULT_SERIES,),
    machine: bool = True,
    tests: bool = False,
) -> None:
    """Installs the missing tools (root with apt) and unpacks a kernel for each series.

    Raises :class:`LabError` that names exactly what to install where it can't do so itself.
    """
    packages = missing_packages(machine=machine, tests=tests)
    if packages:
        command = f"apt-get install --no-install-recommends {' '.join(packages)}"
        if os.geteuid() != 0:
            raise LabError(f"programs are missing: run `{command}` as root")
        if not which("apt-get"):
            raise LabError(f"install what Debian has in these packages: {' '.join(packages)}")
        lists = Path("/var/lib/apt/lists")
        if not any(lists.glob("*_Packages*")):
            _Apt(progress).refresh()
        progress(f"installing {' '.join(packages)}")
        argv = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
        try:
            _run(argv)
        except LabError:
            _Apt(progress).refresh()
            _run(argv)
        still = missing_packages(machine=machine, tests=tests)
        if still:
            raise LabError(f"after `{command}` the programs of {' '.join(still)} are missing still")
    for one in series if machine else ():
        kernel = fetch_kernel(one, progress)
        progress(f"kernel {kernel.release} is ready")
