"""Selectors that users write: label selectors as kubectl takes them, and patterns with * and ?.

A leaf, as `settings` is: markers and the policy file choose nodes by the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSelector:
    """A label selector as kubectl takes it: "a=b,c!=d,e,!f,g in (x,y),h notin (z)"."""

    text: str
    clauses: tuple[tuple[str, str, frozenset[str]], ...]

    @classmethod
    def parse(cls, text: object) -> LabelSelector:
        """Read one selector; ``ValueError`` says what was expected."""
        key, value = r"([A-Za-z0-9](?:[\w./-]*[A-Za-z0-9])?)", r"([\w.-]*)"
        forms: tuple[tuple[str, Callable[[re.Match[str]], tuple[str, str, set[str]]]], ...] = (
            (rf"{key}\s*(in|notin)\s*\(([^()]*)\)", lambda m: (m[1], m[2], _values(m[3]))),
            (rf"{key}\s*(==?|!=)\s*{value}", lambda m: (m[1], _set_word(m[2]), {m[3]})),
            (rf"!\s*{key}", lambda m: (m[1], "absent", set())),
            (rf"{key}", lambda m: (m[1], "present", set())),
        )
        clauses = []
        # A comma inside parentheses separates values, not clauses.
        for part in re.split(r",(?![^()]*\))", str(text)):
            for pattern, build in forms:
                match = re.fullmatch(pattern, part.strip())
                if match is not None and isinstance(text, str):
                    label, word, values = build(match)
                    clauses.append((label, word, frozenset(values)))
                    break
            else:
                raise ValueError(f"{text!r}, expected a label selector such as 'pool=blue,!gpu'")
        return cls(text=str(text), clauses=tuple(clauses))

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels match all clauses; != and notin also match where the label is absent."""
        return all(_clause_holds(clause, labels) for clause in self.clauses)


def _values(text: str) -> set[str]:
    return {value.strip() for value in text.split(",")}


def _set_word(sign: str) -> str:
    return "notin" if sign == "!=" else "in"


def _clause_holds(clause: tuple[str, str, frozenset[str]], labels: Mapping[str, str]) -> bool:
    label, word, values = clause
    if word in ("present", "absent"):
        return (label in labels) == (word == "present")
    return (labels.get(label) in values) if word == "in" else (labels.get(label) not in values)


def wildcard(pattern: str, text: str) -> bool:
    """Whether a text matches a pattern, where only * and ? are special.

    Objects of findings have brackets of their own ("[fd00::1]:80/TCP"), which ``fnmatch`` would
    read as a set of characters.
    """
    parts = ({"*": ".*", "?": "."}.get(sign, re.escape(sign)) for sign in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def check_matches(pattern: str, check: str) -> bool:
    """Whether a check's id matches an id ("TB-03"), a group ("TB") or a pattern ("TB-0*")."""
    return fnmatchcase(check, pattern) or check.startswith(f"{pattern}-")
