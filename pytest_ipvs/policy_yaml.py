"""YAML with the line of each value, so that a sentence about a wrong one can say where it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pytest_ipvs.policy import PolicyError

SHOWN = 80
# What PyYAML raises beside its own errors for scalars with a tag that they don't fit: !!bool x.
ODD = (ValueError, LookupError, AttributeError, ArithmeticError, TypeError)
Path_ = tuple[object, ...]
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True, kw_only=True)
class OddNumber:
    """A number that YAML reads otherwise than people do: 010 is 8 to it, and 1:30 is 90."""

    text: str
    value: int

    def __repr__(self) -> str:
        return self.text


class _Loader(yaml.SafeLoader):
    """Days stay texts, so that the sentence about a wrong one can name its key and its line."""


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int | OddNumber:
    value = int(loader.construct_yaml_int(node))
    if re.match(r"[-+]?0_*[0-7]|.*:", node.value):
        return OddNumber(text=node.value, value=value)
    return value


_Loader.add_constructor(f"{_TAG}timestamp", _text)
_Loader.add_constructor(f"{_TAG}int", _integer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One value of the file: what it is, and how a sentence names it.

    ``key`` is the path for readers ("waivers[2].expires"); ``lines`` has the line of each path.
    ``checks`` are the ids of all checks, ``None`` where they are not known.
    """

    file: str
    value: Any
    lines: Mapping[Path_, int]
    path: Path_ = ()
    key: str = ""
    checks: frozenset[str] | None = None

    @property
    def place(self) -> str:
        """ "ipvs.yaml:12"."""
        return f"{self.file}:{self.lines.get(self.path, 1)}"

    def fail(self, expected: str) -> PolicyError:
        """The sentence for a value that can't be used."""
        value = repr(self.value)
        shown = value if len(value) <= SHOWN else value[: SHOWN - 1] + "…"
        return PolicyError(
            f"{self.place}: {self.key or 'the document'} is {shown}, expected {expected}"
        )

    def child(self, part: object, key: str) -> Spot:
        """A value inside this one. Raises `PolicyError` for a number that misleads."""
        spot = replace(self, value=self.value[part], path=(*self.path, part), key=key)
        if isinstance(spot.value, OddNumber):
            raise spot.fail(
                f"a number without a leading 0 or a colon: YAML takes it for {spot.value.value}"
            )
        return spot

    def mapping(self, expected: str = "a mapping") -> dict[str, Spot]:
        """Its values by key. Raises `PolicyError` where it is no mapping with texts as keys."""
        if not isinstance(self.value, dict) or not all(isinstance(k, str) for k in self.value):
            raise self.fail(expected)
        return {name: self.child(name, self._joined(name)) for name in self.value}

    def items(self, expected: str) -> list[Spot]:
        """Its values in order, counted from 1 for readers. Raises `PolicyError`."""
        if not isinstance(self.value, list):
            raise self.fail(expected)
        return [self.child(n, f"{self.key}[{n + 1}]") for n in range(len(self.value))]

    def text(self, expected: str) -> str:
        """Its text on one line. Raises `PolicyError` where it is none."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.fail(expected)
        return " ".join(self.value.split())

    def _joined(self, name: str) -> str:
        name = name if name.isprintable() else repr(name)
        if not self.key:
            return name
        plain = name.replace("_", "").replace("-", "").isalnum()
        return f"{self.key}.{name}" if plain else f"{self.key}[{name}]"


def load(path: str | Path) -> Spot:
    """The file's document, an empty mapping where it is empty. Raises `PolicyError`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyError(f"policy file {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PolicyError(f"policy file {path} is not UTF-8 text") from None
    name = Path(path).name
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines = dict(_lines(name, node)) if node is not None else {}
        document = loader.construct_document(node) if node is not None else None
    except RecursionError:
        raise PolicyError(f"policy file {path} is nested too deeply") from None
    except (yaml.YAMLError, *ODD) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or "not readable"
        problem = " ".join(problem.split())
        raise PolicyError(f"policy file {path} is not YAML{where}: {problem}") from None
    return Spot(file=name, value={} if document is None else document, lines=lines)


def _lines(
    name: str, node: yaml.Node, path: Path_ = (), above: tuple[yaml.Node, ...] = ()
) -> Iterator[tuple[Path_, int]]:
    """The line (from 1) of each value, which for a mapping's is the line of its key.

    What a merge (``<<``) brings has the line where it is written.
    """
    if not path:
        yield path, node.start_mark.line + 1
    if any(node is one for one in above):
        # An alias inside what it stands for.
        raise PolicyError(f"{name}:{node.start_mark.line + 1}: a value contains itself")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            yield (*path, number), child.start_mark.line + 1
            yield from _lines(name, child, (*path, number), above)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        merged: list[tuple[Path_, int]] = []
        own: list[tuple[Path_, int]] = []
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in first:
                # YAML takes the last one in silence, and a reader the first.
                raise PolicyError(
                    f"{name}:{line}: {key.value!r} is given twice, the first time on line "
                    f"{first[key.value]}, expected it once"
                )
            first[key.value] = line
            if key.tag == f"{_TAG}merge":
                inner = child.value if isinstance(child, yaml.SequenceNode) else [child]
                # Of several the first wins. Their own place is not that of what takes them in.
                found = [one for node in reversed(inner) for one in _lines(name, node, path, above)]
                merged += [(at, line) for at, line in found if at != path]
                continue
            own.append(((*path, key.value), line))
            own += _lines(name, child, (*path, key.value), above)
        # The mapping's own keys win over those of a merge, wherever it stands.
        yield from (*merged, *own)
