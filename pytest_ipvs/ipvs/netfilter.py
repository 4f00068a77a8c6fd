"""What ``iptables-save`` and ``ipset save`` print, as records. Pure: text in, records out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: ``words`` as iptables spells them after ``-A CHAIN``, quotes removed."""

    words: tuple[str, ...]

    @property
    def target(self) -> str:
        """Where ``-j`` or ``-g`` leads, "" where the rule has no target."""
        return self.option("-j") or self.option("-g") or ""

    def option(self, name: str) -> str | None:
        """The word after an option, ``None`` where the rule lacks it."""
        for word, following in zip(self.words, self.words[1:], strict=False):
            if word == name:
                return following
        return None

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One chain: ``policy`` is "ACCEPT" or "DROP" of a built-in one, "-" of the others."""

    policy: str = "-"
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """Chains by (table, name), such as ("nat", "KUBE-SERVICES"), in the order of the text.

    ``program`` is the one that printed it ("iptables-save v1.8.9 (nf_tables)").
    """

    chains: Mapping[tuple[str, str], Chain] = field(default_factory=dict)
    program: str = ""

    def rules(self, table: str, chain: str) -> tuple[Rule, ...]:
        """The rules of a chain, in order; empty where there is no such chain."""
        found = self.chains.get((table, chain))
        return found.rules if found is not None else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IpSet:
    """One set: ``kind`` is "hash:ip,port"; ``members`` as ipset spells them ("10.96.0.1,tcp:443").

    A bitmap of ports has its members as plain numbers.
    """

    name: str
    kind: str
    members: frozenset[str]


class NetfilterError(ValueError):
    """A line that neither iptables-save nor ipset prints. ``line_no`` counts from 1."""

    def __init__(self, program: str, line_no: int, line: str, expected: str) -> None:
        shown = line if len(line) <= 120 else f"{line[:120]}…"
        super().__init__(f"{program} line {line_no}: {shown!r}, expected {expected}")
        self.line_no = line_no
        self.line = line
        self.expected = expected


def parse_rules(text: str) -> RuleSet:
    """Read what ``iptables-save`` prints, with or without counters, of either flavour.

    Tables may follow each other in any order. Raises ``ValueError`` for a line that is none of
    it, and where the text ends within a table: a cut-off list must not look like a short one.
    """
    rules: dict[tuple[str, str], list[Rule]] = {}
    policies: dict[tuple[str, str], str] = {}
    program = table = ""
    number = 0
    for number, line in _lines(text):
        expected = _RULE_FORM if table else _TABLE_FORM
        if line.startswith("#"):
            found = _PROGRAM.match(line)
            program = program or (found.group(1) if found else "")
        elif table == "":
            if not (found := _TABLE.fullmatch(line)):
                raise NetfilterError("iptables-save", number, line, expected)
            table = found.group(1)
        elif line == "COMMIT":
            table = ""
        elif found := _CHAIN.fullmatch(line):
            key = (table, found.group(1))
            if key in policies:
                raise NetfilterError("iptables-save", number, line, "each chain once")
            policies[key], rules[key] = found.group(2), []
        elif found := _RULE.fullmatch(line):
            words = _words(found.group(2))
            if words is None or (chain := rules.get((table, found.group(1)))) is None:
                raise NetfilterError("iptables-save", number, line, expected)
            chain.append(Rule(words=words))
        else:
            raise NetfilterError("iptables-save", number, line, expected)
    if table:
        raise NetfilterError("iptables-save", number + 1, "", f"COMMIT of table {table}")
    chains = {key: Chain(policy=policies[key], rules=tuple(found)) for key, found in rules.items()}
    return RuleSet(chains=chains, program=program)


def parse_sets(text: str) -> Mapping[str, IpSet]:
    """Read what ``ipset save`` prints. Raises ``ValueError`` for a line that is none of it.

    Sets are in the order of the text. What follows a member (timeout, counters, comment) is of no
    use to anybody here and is passed over.
    """
    kinds: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    for number, line in _lines(text):
        words = _words(line)
        if words is None or len(words) < 3 or words[0] not in ("create", "add"):
            raise NetfilterError("ipset save", number, line, _SET_FORM)
        verb, name, what = words[:3]
        if verb == "add":
            if name not in members:
                raise NetfilterError("ipset save", number, line, "a set that was created before")
            members[name].append(what)
        elif name in kinds:
            raise NetfilterError("ipset save", number, line, "each set once")
        else:
            kinds[name], members[name] = what, []
    return {
        name: IpSet(name=name, kind=kind, members=frozenset(members[name]))
        for name, kind in kinds.items()
    }


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines: a comment may hold characters that it takes for ends of lines.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if line:
            yield number, line


def _words(line: str) -> tuple[str, ...] | None:
    """The words of a line, quotes removed; ``None`` where a quote does not end."""
    if '"' not in line:
        return tuple(word for word in line.split(" ") if word)
    words = []
    place = 0
    while place < len(line):
        if line[place] == " ":
            place += 1
            continue
        found = _WORD.match(line, place)
        if found is None:
            return None
        quoted, plain = found.groups()
        words.append(plain if quoted is None else _ESCAPED.sub(r"\1", quoted))
        place = found.end()
    return tuple(words)


# A word in quotes, where a backslash takes the meaning of the next character, or a plain one.
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"(?= |$)|([^ "][^ ]*)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_PROGRAM = re.compile(r"# Generated by (\S+ v[0-9][^ ]*(?: \([a-z_]+\))?)")
_TABLE = re.compile(r"\*([^ ]+)")
_CHAIN = re.compile(r":([^ ]+) ([A-Z]+|-)(?: \[[0-9]+:[0-9]+\])?")
_RULE = re.compile(r"(?:\[[0-9]+:[0-9]+\] )?-A ([^ ]+)((?: .*)?)", re.DOTALL)
_TABLE_FORM = "'*TABLE' or a comment"
_RULE_FORM = "':CHAIN POLICY', '-A CHAIN …' of a chain that was named before, or COMMIT"
_SET_FORM = "'create NAME TYPE …' or 'add NAME MEMBER …'"
