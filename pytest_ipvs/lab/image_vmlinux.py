"""Gets the uncompressed kernel out of a bzImage, so that QEMU can boot it directly (PVH).

Under software emulation a kernel that uncompresses itself costs seconds of each boot.
"""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import zlib

__all__ = ["extract_vmlinux"]


def _with_program(program: str, data: bytes) -> bytes | None:
    if not shutil.which(program):
        return None
    # The payload is followed by its length (4 bytes), which these programs complain about.
    done = subprocess.run([program, "-dc"], input=data, capture_output=True, check=False)
    return done.stdout or None


def _uncompress(payload: bytes) -> bytes | None:
    try:
        if payload.startswith(b"\xfd7zXZ\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(payload)
        if payload.startswith(b"\x5d\x00\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload)
    except (lzma.LZMAError, zlib.error):
        return None
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _with_program("zstd", payload)
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return _with_program("lz4", payload)
    return None


def extract_vmlinux(image: bytes) -> bytes | None:
    """The ELF kernel inside a bzImage, or None if that fails.

    Offsets by the x86 boot protocol 2.08 (Documentation/arch/x86/boot.rst of the kernel):
    setup_sects at 0x1f1, payload_offset and payload_length at 0x248.
    """
    if len(image) < 0x250 or image[0x1FE:0x200] != b"\x55\xaa" or image[0x202:0x206] != b"HdrS":
        return None
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    plain = _uncompress(image[start : start + length])
    if plain is None or not plain.startswith(b"\x7fELF"):
        return None
    return plain
