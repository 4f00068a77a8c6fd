"""From the facts script's output to `NodeFacts`: what was read, and why the rest was not."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_ipvs.cluster.configz import KEY, normalise
from pytest_ipvs.cluster.details import Shares, parse_details
from pytest_ipvs.cluster.errors import FactsError, NodeUnreachableError
from pytest_ipvs.cluster.model import HttpAnswer, NodeFacts, ProxyFacts
from pytest_ipvs.cluster.nodes import NodePool
from pytest_ipvs.cluster.process import reason_from
from pytest_ipvs.cluster.script import (
    CONNTRACK_PATH,
    Frame,
    Section,
    facts_script,
    new_mark,
    split_output,
)
from pytest_ipvs.cluster.script_table import FIRST_NAMESPACE, table_script
from pytest_ipvs.cluster.sections import CUT_OFF, TIME_LIMIT, last_line, take
from pytest_ipvs.ipvs.tables import Table, parse_table

# Seconds that the details may take on top of what a reading may.
DETAILS_SECONDS = 40.0
# How the reason begins where nobody listens, unlike a reading that failed.
NOTHING_ANSWERS = "nothing answers on port"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How the script is run. Defaults are right for every cluster; tests have other ones.

    ``root`` is put before /proc and /sys. The ports are kube-proxy's usual ones.
    """

    shell: str = "/bin/sh"
    root: str = ""
    metrics_port: int = 10249
    health_port: int = 10256


class TableCache:
    """Parses each table text once: most nodes of a quiet cluster have the same one."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._tables: OrderedDict[bytes, Table] = OrderedDict()
        self._lock = threading.Lock()

    def parse(self, text: str) -> Table:
        """The parsed table, the same object for the same text. Raises `TableError`."""
        key = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        with self._lock:
            if (table := self._tables.get(key)) is not None:
                self._tables.move_to_end(key)
                return table
        table = parse_table(text)
        with self._lock:
            self._tables[key] = table
            while len(self._tables) > self._size:
                self._tables.popitem(last=False)
        return table


def read_facts(
    pool: NodePool,
    node: str,
    *,
    tables: TableCache | None = None,
    address: str = "",
    probe: Probe | None = None,
    details: bool = False,
    shares: Shares | None = None,
) -> NodeFacts:
    """Run the script on one node. Raises `NodeUnreachableError`.

    A node that shares its kernel is asked once more, for the whole of its table.

    ``address`` is the node's own one, for a kube-proxy that listens on it only. ``details`` adds
    what is dear to read; ``shares`` keeps what nodes have in common.
    """
    probe = probe or Probe()
    mark = new_mark()
    seconds = max(2, min(10, int(pool.timeout / 4)))
    output = pool.run(
        node,
        f"{probe.shell} -c %s sh %s %s %s %s %s %s",
        facts_script(details=details),
        mark,
        probe.root,
        str(seconds),
        f"[{address}]" if ":" in address else address,
        str(probe.metrics_port),
        str(probe.health_port),
        timeout=pool.timeout + DETAILS_SECONDS if details else None,
    )
    taken_at = time.time()
    if mark not in output.stdout and output.rc != 0:
        # docker, kubectl and sudo say in their own words why they did not run it.
        raise NodeUnreachableError(node, reason_from(output.stderr or output.stdout))
    tables = tables or TableCache()
    try:
        facts = parse_facts(
            node,
            output.stdout,
            mark,
            taken_at=taken_at,
            tables=tables,
            details=details,
            shares=shares,
        )
    except FactsError as error:
        raise NodeUnreachableError(node, str(error)) from None
    if facts.table is None or FIRST_NAMESPACE in facts.sysctls:
        return facts
    whole = pool.run(node, f"{probe.shell} -c %s sh %s", table_script(), probe.root)
    unread = dict(facts.unread)
    if whole.rc:
        unread["table"] = last_line(whole.stderr) or f"exit status {whole.rc}"
    section = Section(text=whole.stdout, status="1" if whole.rc else "0")
    return replace(facts, table=_table(section, tables, unread), unread=unread)


def parse_facts(
    node: str,
    output: str,
    mark: str,
    *,
    taken_at: float,
    tables: TableCache | None = None,
    details: bool = False,
    shares: Shares | None = None,
) -> NodeFacts:
    """Read the script's output. Raises `FactsError` only if it has no frame at all."""
    frame = split_output(output, mark)
    unread: dict[str, str] = {}
    release, version = _kernel(take(frame, "kernel", unread))
    if not release:
        unread.setdefault("kernel", "nothing could be read")
    addresses = _addresses(take(frame, "addresses", unread))
    if not addresses:
        # Every machine has a loopback address at least.
        unread.setdefault("addresses", "nothing could be read")
    table = take(frame, "table", unread, good=("0", "absent"))
    files = _files(frame, unread)
    sysctls = {_sysctl_key(path): value for path, value in files["sysctls"].items()}
    return NodeFacts(
        node=node,
        taken_at=taken_at,
        kernel_release=release,
        kernel_version=version,
        sysctls=sysctls,
        module_parameters={_module_key(path): value for path, value in files["modules"].items()},
        table=_table(table, tables or TableCache(), unread),
        addresses=addresses,
        proxy=_proxy(frame, unread),
        conntrack=_conntrack(files["conntrack"], unread),
        details=parse_details(frame, sysctls, unread, shares) if details else None,
        unread=unread,
    )


def _kernel(section: Section) -> tuple[str, str]:
    release, _, version = section.text.partition("\n")
    return release.strip(), version.strip()


_FOLDERS = {"proc/sys/": "sysctls", "sys/module/": "modules", "proc/net/": "conntrack"}
_FILE = re.compile(r"(proc/sys/|sys/module/|proc/net/)([^:]+):(.*)", re.DOTALL)
_ERROR = re.compile(r"\S*grep: (proc/sys/|sys/module/|proc/net/)(.+): (.+)")


def _files(frame: Frame, unread: dict[str, str]) -> Mapping[str, Mapping[str, str]]:
    """Path to text for sysctls, modules and conntrack's counters, of grep's ``path:text`` lines.

    That a file does not exist is a fact; every other failure of grep is a reason in ``unread``.
    """
    # grep's status says little: it is 2 as soon as one of many files does not exist.
    section = take(frame, "files", unread, good=("0", "1", "2"))
    failed = unread.pop("files", None)
    found: dict[str, dict[str, str]] = {"sysctls": {}, "modules": {}, "conntrack": {}}
    for line in section.text.splitlines():
        if match := _ERROR.fullmatch(line):
            folder, path, words = match.groups()
            if "no such file" not in words.lower():
                unread.setdefault(_FOLDERS[folder], f"{path}: {words}")
                if folder == "proc/sys/":
                    unread[_sysctl_key(path)] = words
        elif match := _FILE.fullmatch(line):
            folder, path, text = match.groups()
            text = " ".join(text.split())
            if folder == "proc/net/":
                # A line of titles and one per processor, all of them wanted.
                text = f"{found['conntrack'].get(path, '')}\n{text}"
                found["conntrack"][path] = text
            else:
                found[_FOLDERS[folder]].setdefault(path, text)
    if failed is not None:
        unread["sysctls"] = unread["modules"] = unread["conntrack"] = failed
    elif not found["sysctls"]:
        # Every Linux has some of them: none at all means that the reading failed.
        unread.setdefault("sysctls", last_line(section.text) or "nothing could be read")
    return found


_SWAPPED = str.maketrans("/.", "./")


def _sysctl_key(path: str) -> str:
    # As sysctl(8) writes it: a dot in an interface's name becomes a slash.
    return sys.intern(path.translate(_SWAPPED))


def _module_key(path: str) -> str:
    module, _, parameter = path.partition("/parameters/")
    return f"{module}.{parameter}"


def _conntrack(files: Mapping[str, str], unread: dict[str, str]) -> Mapping[str, int]:
    """The counters of conntrack, summed; "entries" is one number that each processor repeats."""
    lines = files.get(CONNTRACK_PATH, "").split("\n")[1:]
    if not lines:
        unread.setdefault("conntrack", "the kernel has no counters of conntrack: is it loaded?")
        return {}
    names = lines[0].split()
    sums = dict.fromkeys(names, 0)
    try:
        for line in lines[1:]:
            for name, text in zip(names, line.split(), strict=True):
                value = int(text, 16)
                sums[name] = value if name == "entries" else sums[name] + value
    except ValueError:
        unread["conntrack"] = f"a line of its counters is {line[:80]!r}, expected hex numbers"
        return {}
    return sums


def _table(section: Section, tables: TableCache, unread: dict[str, str]) -> Table | None:
    if section.status != "0":
        return None
    try:
        return tables.parse(section.text)
    except ValueError as error:
        unread["table"] = str(error)
        return None


_ADDRESS = re.compile(r"\d+:\s+(\S+?)(?:@\S+)?\s+inet6?\s+([0-9A-Fa-f.:]+)")


def _addresses(section: Section) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for line in section.text.splitlines():
        if match := _ADDRESS.match(line):
            try:
                address = str(ipaddress.ip_address(match.group(2)))
            except ValueError:
                continue
            found.append((match.group(1), address))
    return tuple(found)


def _proxy(frame: Frame, unread: dict[str, str]) -> ProxyFacts:
    missing = TIME_LIMIT if frame.complete else CUT_OFF
    answers = {
        path: _http(frame.answers[path]) if path in frame.answers else missing
        for path in ("/proxyMode", "/configz", "/metrics", "/healthz", "/livez")
    }

    def body(path: str, fact: str) -> str | None:
        answer = answers[path]
        if isinstance(answer, str):
            unread[fact] = answer
        elif answer.status != 200:
            unread[fact] = f"{path} answers with status {answer.status}"
        else:
            return answer.body
        return None

    def whole(path: str, fact: str) -> HttpAnswer | None:
        answer = answers[path]
        if isinstance(answer, str):
            unread[fact] = answer
            return None
        return answer

    return ProxyFacts(
        mode=_mode(body("/proxyMode", "proxy.mode"), unread),
        version=_version(body("/metrics", "proxy.version"), unread),
        metrics=_metrics(body("/metrics", "proxy.metrics"), unread),
        config=_config(body("/configz", "proxy.config"), unread),
        healthz=whole("/healthz", "proxy.healthz"),
        livez=whole("/livez", "proxy.livez"),
    )


def _http(section: Section) -> HttpAnswer | str:
    """The answer, or why there is none."""
    status = section.status
    if status == "http:error":
        code = re.search(r"(?:HTTP/1\.\d|ERROR) ([1-5]\d\d)\b", section.text)
        return HttpAnswer(status=int(code.group(1)), body="") if code else "an error without status"
    if match := re.fullmatch(r"http:([1-5]\d\d)", status):
        return HttpAnswer(status=int(match.group(1)), body=section.text)
    if status == "127":
        return last_line(section.text) or "neither curl nor wget is installed"
    return f"{NOTHING_ANSWERS} {section.port} of the loopback or node address"


def _mode(text: str | None, unread: dict[str, str]) -> str | None:
    if text is None:
        return None
    mode = text.strip()
    if not re.fullmatch(r"[a-z]{1,20}", mode):
        unread["proxy.mode"] = f"/proxyMode answers {mode[:40]!r}, expected one word"
        return None
    return mode


def _version(text: str | None, unread: dict[str, str]) -> str | None:
    if text is None:
        return None
    found = re.search(r'^kubernetes_build_info\{.*?git_?[vV]ersion="([^"]+)"', text, re.MULTILINE)
    if found is None:
        unread["proxy.version"] = "/metrics has no kubernetes_build_info"
        return None
    return found.group(1)


_SAMPLE = re.compile(r"(kubeproxy_\w+(?:\{.*\})?) ([^ ]+)(?: [0-9]+)?", re.ASCII)


def _metrics(text: str | None, unread: dict[str, str]) -> Mapping[str, float]:
    found = {}
    for line in (text or "").splitlines():
        if match := _SAMPLE.fullmatch(line):
            try:
                value = float(match.group(2))
            except ValueError:
                continue
            # What is not a number says nothing, and equals not even itself.
            if value == value:
                # A thousand nodes, read several times, have the same names.
                found[sys.intern(match.group(1))] = value
    if not found:
        unread.setdefault("proxy.metrics", "/metrics has no sample of kubeproxy_…")
    return found


def _config(text: str | None, unread: dict[str, str]) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    config = normalise(document) if isinstance(document, dict) else None
    if config is None:
        unread["proxy.config"] = f"/configz has no {KEY}"
        return None
    return config
