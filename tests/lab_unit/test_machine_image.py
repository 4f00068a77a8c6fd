"""The guest's image: which files go in, and that the archive is one that a kernel reads."""

from __future__ import annotations

import gzip
import importlib.util
import lzma
import marshal
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pytest_ipvs.lab import image, image_python
from pytest_ipvs.lab.image_vmlinux import extract_vmlinux

DEPENDENCIES = """\
kernel/net/netfilter/ipvs/ip_vs.ko: kernel/net/netfilter/nf_conntrack.ko kernel/lib/libcrc32c.ko
kernel/net/netfilter/ipvs/ip_vs_rr.ko: kernel/net/netfilter/ipvs/ip_vs.ko kernel/lib/libcrc32c.ko
kernel/net/netfilter/nf_conntrack.ko.xz: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
kernel/drivers/char/hw_random/virtio-rng.ko:
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko
"""


def test_modules_come_with_what_they_need_and_nothing_else() -> None:
    assert image.module_closure(DEPENDENCIES, ["ip_vs_rr", "virtio_rng", "not-there"]) == {
        "kernel/net/netfilter/ipvs/ip_vs_rr.ko",
        "kernel/net/netfilter/ipvs/ip_vs.ko",
        "kernel/lib/libcrc32c.ko",
        "kernel/drivers/char/hw_random/virtio-rng.ko",
    }


def test_libraries_of_a_program_are_found() -> None:
    shell = shutil.which("sh")
    assert shell is not None
    assert any(path.name.startswith("libc.so") for path in image.libraries([Path(shell)]))


@pytest.mark.skipif(not shutil.which("cpio"), reason="cpio is not installed")
def test_archive_holds_the_tree(tmp_path: Path) -> None:
    source = tmp_path / "program"
    source.write_text("#!/bin/sh\n")
    source.chmod(0o755)
    module = tmp_path / "module.py"
    module.write_text("answer = 42\n")
    tree = image.Tree()
    tree.add(source)
    tree.text("/etc/hostname", "lab\n", 0o600)
    tree.links["/bin"] = "usr/bin"
    tree.directories.add("/proc")
    tree.compiled["/lib/module.pyc"] = module
    archive = tmp_path / "image"
    tree.write(archive)
    target = tmp_path / "unpacked"
    target.mkdir()
    with archive.open("rb") as stream:
        subprocess.run(
            ["cpio", "-idm", "--quiet", "--no-absolute-filenames", "--nonmatching", "dev/console"],
            stdin=stream,
            cwd=target,
            check=True,
        )
    assert (target / "etc/hostname").read_text() == "lab\n"
    assert (target / "etc/hostname").stat().st_mode & 0o777 == 0o600
    assert str((target / "bin").readlink()) == "usr/bin"
    assert (target / "proc").is_dir()
    inside = target / str(source).lstrip("/")
    assert inside.read_text() == "#!/bin/sh\n"
    assert inside.stat().st_mode & 0o111


def test_digest_changes_with_content_only(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")

    def digest(text: str) -> str:
        tree = image.Tree()
        tree.add(file)
        tree.text("/etc/hostname", text)
        return tree.digest()

    first = digest("lab\n")
    assert digest("lab\n") == first
    assert digest("other\n") != first
    file.write_text("longer")
    assert digest("lab\n") != first


def test_links_are_followed_into_the_image(tmp_path: Path) -> None:
    (tmp_path / "lib.so.1.2").write_text("x")
    (tmp_path / "lib.so.1").symlink_to("lib.so.1.2")
    tree = image.Tree()
    tree.add(tmp_path / "lib.so.1")
    real = tmp_path.resolve()
    assert tree.links == {str(real / "lib.so.1"): "lib.so.1.2"}
    assert tree.files == {str(real / "lib.so.1.2"): real / "lib.so.1.2"}


def test_compiled_modules_are_never_checked_against_a_source(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("answer = 42\n")
    data = image_python.compiled(source)
    assert data[:4] == importlib.util.MAGIC_NUMBER
    # PEP 552: bit 0 says hash-based, bit 1 would ask for a check.
    assert struct.unpack_from("<I", data, 4) == (1,)
    space: dict[str, object] = {}
    exec(marshal.loads(data[16:]), space)
    assert space["answer"] == 42


def bzimage(payload: bytes) -> bytes:
    header = bytearray(512 * 2)
    header[0x1F1] = 1
    header[0x1FE:0x200] = b"\x55\xaa"
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", header, 0x248, 16, len(payload))
    return bytes(header) + bytes(16) + payload + bytes(64)


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress], ids=["xz", "gzip"])
def test_kernel_is_taken_out_of_its_image(compress: object) -> None:
    assert callable(compress)
    kernel = b"\x7fELF" + b"kernel" * 100
    assert extract_vmlinux(bzimage(compress(kernel))) == kernel


@pytest.mark.parametrize(
    "data",
    [b"", b"not a kernel" * 100, bzimage(b"unknown"), bzimage(gzip.compress(b"no ELF file"))],
    ids=["empty", "no header", "unknown compression", "no ELF"],
)
def test_what_cannot_be_extracted_is_left_to_boot_as_it_is(data: bytes) -> None:
    assert extract_vmlinux(data) is None
