"""Puts the Python that runs us, and our own package, into the guest's image.

Modules go in compiled and marked as never to be checked against their source: the initramfs does
not keep times, and an emulated processor needs seconds to compile them again.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import struct
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipvs.lab.image import Tree

__all__ = ["add", "add_package", "compiled"]

_LEFT_OUT = {
    "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "pydoc_data", "turtledemo",
    "distutils", "site-packages", "dist-packages", "__pycache__", "lib-dynload", "venv", "sqlite3",
    "curses", "dbm", "wsgiref", "xmlrpc", "msilib", "turtle.py", "pydoc.py", "_pydecimal.py",
    "doctest.py", "tarfile.py", "mailbox.py", "nntplib.py", "imaplib.py", "smtplib.py", "ftplib.py",
    "config", "unittest", "_pyrepl", "antigravity.py", "this.py", "pickletools.py",
}  # fmt: skip
_EXTENSIONS_LEFT_OUT = (
    "_test", "_ctypes_test", "xx", "_tkinter", "_curses", "readline", "_sqlite3", "_dbm", "_gdbm",
    "nis", "ossaudiodev", "audioop", "_codecs_", "_xxtestfuzz", "_crypt", "spwd", "_lsprof",
)  # fmt: skip


def compiled(source: Path) -> bytes:
    """The module's byte code as an unchecked hash-based .pyc (PEP 552)."""
    cache = Path(importlib.util.cache_from_source(str(source)))
    state = source.stat()
    code = b""
    try:
        known = cache.read_bytes()
    except OSError:
        known = b""
    if known[:4] == importlib.util.MAGIC_NUMBER and len(known) > 16:
        flags, mtime, size = struct.unpack_from("<III", known, 4)
        if flags == 0 and mtime == int(state.st_mtime) & 0xFFFFFFFF and size == state.st_size:
            code = known[16:]
    if not code:
        text = source.read_bytes()
        code = marshal.dumps(compile(text, str(source), "exec", dont_inherit=True))
    return importlib.util.MAGIC_NUMBER + struct.pack("<I", 1) + bytes(8) + code


def _walk(directory: Path) -> list[Path]:
    found = []
    for entry in sorted(directory.iterdir()):
        if entry.name in _LEFT_OUT or entry.name.startswith("config-"):
            continue
        if entry.is_dir():
            found += _walk(entry)
        elif entry.suffix == ".py":
            found.append(entry)
    return found


def add(tree: Tree) -> tuple[str, list[Path]]:
    """Adds the interpreter and its standard library.

    Returns the interpreter's path inside, and the binaries whose libraries must come along.
    """
    program = Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
    library = Path(os.path.realpath(os.__file__)).parent
    tree.add(program)
    for source in _walk(library):
        # Without sources: half the size, and nobody debugs the standard library in there.
        if source.name != "os.py":
            tree.compiled[str(source.with_suffix(".pyc"))] = source
    # The interpreter finds its home by this file.
    tree.add(library / "os.py")
    tree.compiled[importlib.util.cache_from_source(str(library / "os.py"))] = library / "os.py"
    extensions = []
    dynamic = Path(sysconfig.get_config_var("DESTSHARED") or library / "lib-dynload")
    for extension in sorted(dynamic.glob("*.so")):
        if not extension.name.startswith(_EXTENSIONS_LEFT_OUT):
            tree.add(extension)
            extensions.append(extension)
    tree.directories.add(str(dynamic))
    for name in ("/usr/bin/python3", "/usr/bin/python"):
        if name != str(program):
            tree.links[name] = str(program)
    return str(program), [program, *extensions]


def add_package(tree: Tree, package: Path, target: str) -> None:
    """Adds our package's sources, with their byte code, below ``target``."""
    wanted = [package / "__init__.py"]
    for room in ("lab", "ipvs", "traffic"):
        wanted += sorted((package / room).rglob("*.py"))
    for source in wanted:
        inside = Path(target, package.name, source.relative_to(package))
        tree.text(str(inside), source.read_bytes())
        cache = inside.parent / "__pycache__" / f"{inside.stem}.{sys.implementation.cache_tag}.pyc"
        tree.compiled[str(cache)] = source
