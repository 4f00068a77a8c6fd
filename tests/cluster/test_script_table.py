"""The whole table is read where a plain reading loses virtual servers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_page import HEAD, SharedKernel, record

from pytest_ipvs.cluster.script_table import table_script

SHELLS = [shell for shell in ("sh", "bash", "busybox") if shutil.which(shell)]
LONG = SharedKernel(
    (HEAD, *(record(n, n % 9, p) for n, p in enumerate(("TCP", "UDP", "SCTP", "FWM") * 12)))
)
DD = """#!{python}
import json, sys
sys.path.insert(0, {tests!r})
from one_page import SharedKernel
words = dict(word.split("=", 1) for word in sys.argv[1:])
tables = json.load(open({tables!r}))
if len(tables) > 1:
    json.dump(tables[1:], open({tables!r}, "w"))
if not tables[0]:
    sys.exit(1)
offset = int(words.get("skip", 0))
assert words["bs"] == "65536" and words["count"] == "1"
assert words.get("iflag") == ("skip_bytes" if offset else None)
sys.stdout.write(SharedKernel(tuple(tables[0])).read(offset, 65536))
"""


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the script with a ``dd`` that reads these tables, each once and the last ever after."""

    def run(*tables: SharedKernel | None, shell: str = "sh") -> subprocess.CompletedProcess[str]:
        (tmp_path / "proc/net").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/net/ip_vs").write_text("")
        kept = tmp_path / "tables.json"
        kept.write_text(json.dumps([table.records if table else [] for table in tables]))
        dd = tmp_path / "dd"
        tests = str(Path(__file__).parents[1])
        dd.write_text(DD.format(python=sys.executable, tests=tests, tables=str(kept)))
        dd.chmod(0o755)
        words = ["busybox", "sh"] if shell == "busybox" else [shell]
        return subprocess.run(
            [*words, "-c", table_script(), "sh", str(tmp_path)],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_plain_reading_loses_virtual_servers() -> None:
    """What this is all about, as the kernel does it."""
    plain = LONG.read(0, 65536)
    while more := LONG.read(len(plain), 65536):
        plain += more
    assert plain != LONG.text
    assert len(plain) < len(LONG.text)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_reads_all_of_them(
    read: Callable[..., subprocess.CompletedProcess[str]], shell: str
) -> None:
    done = read(LONG, shell=shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, LONG.text, "")


@pytest.mark.parametrize(
    "records", [(HEAD,), (HEAD, record(1, 80)), (HEAD, record(1, 80), record(2, 90), record(3, 0))]
)
def test_tables_of_few_virtual_servers(
    read: Callable[..., subprocess.CompletedProcess[str]], records: tuple[str, ...]
) -> None:
    assert read(SharedKernel(records)).stdout == "".join(records)


def test_a_table_that_changes_meanwhile_is_read_again(
    read: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    shifted = SharedKernel((HEAD, record(99, 3), *LONG.records[1:]))
    assert read(LONG, shifted).stdout == shifted.text


def test_a_table_that_never_stands_still_is_no_table(
    read: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    shifted = SharedKernel((HEAD, record(99, 3), *LONG.records[1:]))
    done = read(*[LONG, shifted] * 9)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "/proc/net/ip_vs changed while it was read, three times\n"


def test_without_a_dd_that_can_skip_there_is_no_table(
    read: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = read(LONG, None)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dd can not read a part of /proc/net/ip_vs\n"


def test_a_machine_of_its_own_is_read_plainly(tmp_path: Path) -> None:
    for path, text in {"sys/net/ipv4/tcp_mem": "1 2 3\n", "net/ip_vs": LONG.text}.items():
        (tmp_path / "proc" / path).parent.mkdir(parents=True)
        (tmp_path / "proc" / path).write_text(text)
    words = ["sh", "-c", table_script(), "sh", str(tmp_path)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == LONG.text


def test_a_machine_without_ipvs_says_so(tmp_path: Path) -> None:
    words = ["sh", "-c", table_script(), "sh", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No such file" in done.stderr


@given(st.lists(st.integers(0, 120), max_size=40), st.integers(0, 5))
def test_the_lab_reads_all_of_them_too(servers: list[int], others: int) -> None:
    from pytest_ipvs.lab import hand_ipvs

    kernel = SharedKernel((HEAD, *(record(n, k) for n, k in enumerate(servers))), others)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hand_ipvs.os, "pread", lambda _, size, at: kernel.read(at, size).encode())
        assert hand_ipvs.read_table("/dev/null") == kernel.text
