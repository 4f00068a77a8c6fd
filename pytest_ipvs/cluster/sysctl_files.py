"""The files of sysctl.d: which of them count, and in which order their lines are applied.

As systemd-sysctl does it at boot (sysctl.d(5)): a file in an earlier directory hides those of the
same name in later ones, files are applied sorted by name, the last line for a key wins. A key
that is named in full is stronger than a pattern, wherever the two stand.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from pytest_ipvs.cluster.model import SysctlLine

_MAIN = "etc/sysctl.conf"
_LINE = re.compile(r"(.+?\.conf):([0-9]+):(.*)")


def parse_sysctl_files(text: str, sysctls: Collection[str]) -> tuple[SysctlLine, ...]:
    """The lines in the order in which they are applied.

    ``text``: "=PATH" for each file, first the directories that come first, then "PATH:LINE:TEXT".
    A pattern becomes a line for each of ``sysctls`` that it stands for; it stays as it is where
    it stands for none of them.
    """
    files: dict[str, str] = {}
    lines: dict[str, list[tuple[int, str]]] = {}
    for row in text.splitlines():
        if row.startswith("="):
            path = row[1:]
            files.setdefault(path if path == _MAIN else path.rpartition("/")[2], path)
        elif found := _LINE.fullmatch(row):
            path, number, words = found.groups()
            lines.setdefault(path, []).append((int(number), words))
    # The main file is no part of any directory and comes last.
    order = sorted(files, key=lambda name: (name == _MAIN, name.encode(errors="surrogateescape")))
    settings: list[SysctlLine] = []
    excluded: set[str] = set()
    for path in (files[name] for name in order):
        for number, words in lines.get(path, ()):
            setting = _setting(path, number, words)
            if setting is not None and setting.value == "" and "=" not in words:
                excluded.add(setting.key)
            elif setting is not None:
                settings.append(setting)
    return _expanded(settings, excluded, sysctls)


def _setting(path: str, number: int, text: str) -> SysctlLine | None:
    """One line; without "=" it is of use only if it takes a key out of patterns ("-key")."""
    name, equals, value = text.strip().partition("=")
    name = name.strip()
    optional = name.startswith("-")
    name = name.removeprefix("-").strip()
    if not name or name[0] in "#;" or not (equals or optional):
        return None
    return SysctlLine(
        path=f"/{path}",
        line=number,
        key=_dotted(name),
        value=" ".join(value.split()),
        optional=optional,
    )


def _dotted(name: str) -> str:
    """The key with dots, whichever of dot and slash comes first in a file's spelling."""
    name = name.strip("/")
    first = re.search(r"[./]", name)
    if first is not None and first.group() == "/":
        return name.translate(str.maketrans("/.", "./"))
    return name


def _expanded(
    settings: list[SysctlLine], excluded: set[str], sysctls: Collection[str]
) -> tuple[SysctlLine, ...]:
    named = {setting.key for setting in settings if not _is_pattern(setting.key)} | excluded
    matching: Mapping[str, list[str]] = {
        pattern: [key for key in sysctls if _stands_for(pattern, key)]
        for pattern in {s.key for s in settings if _is_pattern(s.key)}
    }
    found: list[SysctlLine] = []
    for setting in settings:
        keys = matching.get(setting.key)
        if not keys:
            found.append(setting)
        else:
            found += [replace(setting, key=key) for key in keys if key not in named]
    return tuple(found)


def _is_pattern(key: str) -> bool:
    return any(sign in key for sign in "*?[")


def _stands_for(pattern: str, key: str) -> bool:
    """Part by part: a star stands for no dot."""
    parts, words = pattern.split("."), key.split(".")
    return len(parts) == len(words) and all(map(fnmatchcase, words, parts))
