"""What the lab needs from the distribution, and how a kernel gets into the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pytest_ipvs.lab import install
from pytest_ipvs.lab.machine import LabError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_IPVS_CACHE", str(tmp_path))
    return tmp_path


def unpack(cache: Path, release: str, *, complete: bool = True) -> None:
    directory = cache / "kernels" / release
    directory.mkdir(parents=True)
    (directory / "vmlinuz").touch()
    if complete:
        (directory / "complete").touch()


def test_newest_cloud_kernel_of_the_series_comes_first() -> None:
    names = [
        "linux-image-6.1.0-9-amd64",
        "linux-image-6.1.0-56-amd64",
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-6.1.0-56-rt-amd64",
        "linux-image-6.1.0-9-cloud-amd64",
        "linux-image-6.1.0-56-cloud-amd64-dbg",
        "linux-image-6.1.0-56-amd64-unsigned",
        "linux-image-6.12.101+deb12-cloud-amd64",
        "linux-image-6.12-cloud-amd64",
        "linux-image-amd64",
    ]
    assert install.kernel_packages(names, "6.1") == [
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-6.1.0-9-cloud-amd64",
        "linux-image-6.1.0-56-amd64",
        "linux-image-6.1.0-9-amd64",
    ]
    assert install.kernel_packages(names, "6.12") == ["linux-image-6.12.101+deb12-cloud-amd64"]
    assert install.kernel_packages(names, "5.10") == []


def test_newest_unpacked_kernel_is_found(cache: Path) -> None:
    assert install.find_kernel("6.1") is None
    unpack(cache, "6.1.0-9-cloud-amd64")
    unpack(cache, "6.1.0-56-cloud-amd64")
    unpack(cache, "6.1.0-57-cloud-amd64", complete=False)
    unpack(cache, "6.12.101+deb12-cloud-amd64")
    kernel = install.find_kernel("6.1")
    assert kernel is not None
    assert kernel.release == "6.1.0-56-cloud-amd64"
    assert kernel.vmlinux is None
    assert kernel.modules == (
        cache / "kernels/6.1.0-56-cloud-amd64/lib/modules/6.1.0-56-cloud-amd64"
    )


def test_cache_directory_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_IPVS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert install.cache_directory() == tmp_path / "pytest-ipvs"


def test_missing_programs_are_named_by_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"ip", "modprobe", "ssh", "ssh-keygen", "dash", "sysctl", "depmod", "dpkg-deb"}
    monkeypatch.setattr(install, "which", lambda name: name if name in present else None)
    assert install.missing_packages(machine=False) == (
        "conntrack",
        "dropbear-bin",
        "ipset",
        "iptables",
        "ipvsadm",
    )
    assert {"busybox", "qemu-system-x86"} <= set(install.missing_packages())


def test_without_root_install_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "which", lambda name: None if name == "ipvsadm" else name)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="run `apt-get install --no-install-recommends ipvsadm`"):
        install.install(lambda _line: None)


def test_a_series_that_the_lists_lack_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_run", lambda argv, cwd=None: "linux-image-6.1.0-56-amd64\n")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(LabError, match=r"no linux-image-9\.9\.\*-amd64"):
        install.fetch_kernel("9.9", lambda _line: None)


Archive = Callable[[str, str, dict[str, Sequence[str]]], list[str]]


@pytest.fixture
def archive(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """apt and dpkg of a host whose lists have these images, beside one of another suite.

    ``packages`` maps each package to what it depends on and the files in it.
    """

    def open_archive(here: str, there: str, packages: dict[str, Sequence[str]]) -> list[str]:
        told: list[str] = []

        def run(argv: Sequence[str], cwd: Path | None = None) -> str:
            elsewhere = "-o" in argv
            last = argv[-1]
            if "pkgnames" in argv:
                return there if elsewhere else here
            if "indextargets" in argv:
                return "http://mirror.invalid/debian/\n"
            if "update" in argv:
                (sources,) = (word for word in argv if word.startswith("Dir::Etc::SourceList="))
                told.append(Path(sources.partition("=")[2]).read_text().rpartition("]")[2].strip())
            elif "download" in argv:
                assert cwd is not None
                (cwd / f"{last}_1_amd64.deb").touch()
                told.append(last)
            elif argv[:2] == ["dpkg-deb", "-f"]:
                return packages[Path(argv[2]).name.partition("_")[0]][0]
            elif argv[:2] == ["dpkg-deb", "-x"]:
                for inside in packages[Path(argv[2]).name.partition("_")[0]][1:]:
                    path = Path(last, inside)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
            return ""

        monkeypatch.setattr(install, "_run", run)
        return told

    return open_archive


def test_an_older_kernel_comes_from_its_suite_on_the_host_s_mirror(archive: Archive) -> None:
    release = "5.10.0-32-cloud-amd64"
    told = archive(
        "linux-image-6.1.0-56-cloud-amd64\n",
        f"linux-image-{release}\n",
        {
            f"linux-image-{release}": (
                "kmod, linux-base (>= 4.3~)",
                f"boot/vmlinuz-{release}",
                f"lib/modules/{release}/kernel/ip_vs.ko",
            )
        },
    )
    kernel = install.fetch_kernel("5.10", lambda _line: None)
    assert kernel.release == release
    assert kernel.vmlinuz.exists()
    assert (kernel.modules / "kernel/ip_vs.ko").exists()
    source, *downloads = told
    assert source.endswith("http://mirror.invalid/debian/ bullseye main")
    assert downloads == [f"linux-image-{release}"]
    assert install.fetch_kernel("5.10", lambda _line: None) == kernel
    assert len(told) == 2


def test_a_kernel_in_several_packages_is_put_together(archive: Archive) -> None:
    release = "7.2.12+deb13-cloud-amd64"
    parts = ("base", "binary", "modules")
    inside = f"usr/lib/modules/{release}"
    told = archive(
        "",
        f"linux-image-{release}\n",
        {
            f"linux-image-{release}": (
                "dracut | linux-initramfs-tool, "
                + ", ".join(f"linux-{part}-{release} (= 7.2.12-1)" for part in parts),
            ),
            f"linux-base-{release}": ("", f"{inside}/modules.builtin"),
            f"linux-binary-{release}": ("", f"{inside}/vmlinuz"),
            f"linux-modules-{release}": ("", f"{inside}/kernel/ip_vs.ko.xz"),
        },
    )
    kernel = install.fetch_kernel("7.2", lambda _line: None)
    assert kernel.release == release
    assert kernel.vmlinuz.exists()
    assert (kernel.modules / "kernel/ip_vs.ko.xz").exists()
    assert (kernel.modules / "modules.builtin").exists()
    assert told[0].endswith("trixie-backports main")
    assert len(told) == 5


def test_a_kernel_without_ipvs_is_refused(archive: Archive) -> None:
    release = "7.2.12-cloud-amd64"
    archive(
        "", f"linux-image-{release}", {f"linux-image-{release}": ("", f"boot/vmlinuz-{release}")}
    )
    with pytest.raises(LabError, match=r"no kernel of series 7.2 could be had: .* no ip_vs module"):
        install.fetch_kernel("7.2", lambda _line: None)
    assert install.find_kernel("7.2") is None
