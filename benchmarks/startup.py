"""What the plugin adds to a start of pytest that does not use it.

Runs pytest with and without the plugin in turn, so that a busy machine slows both alike, and
compares medians. The last line is one JSON object; ``startup_added_ms`` is the worse of
``pytest --version`` and of a start that loads every plugin and collects nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

WITHOUT = ("-p", "no:ipvs")
# A single --version is answered before any plugin is loaded, a double one after.
STARTS = {
    "version": ("--version",),
    "version_of_plugins": ("--version", "--version"),
    "collect_nothing": ("--collect-only", "-q", "-p", "no:cacheprovider"),
}


def seconds(arguments: tuple[str, ...], directory: str) -> float:
    """CPU seconds of one start, user and system: waiting for a processor does not count."""
    before = used()
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=directory,
        env=environment(directory),
        capture_output=True,
        check=False,
    )
    if process.returncode not in (0, 5):
        sys.exit(
            f"pytest {' '.join(arguments)} ended with {process.returncode}: {process.stderr!r}"
        )
    return used() - before


def environment(directory: str) -> dict[str, str]:
    """Bytecode is cached as in any installation, but where nobody else's is."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": f"{directory}/bytecode"}


def used() -> float:
    """CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(arguments: tuple[str, ...], rounds: int, directory: str) -> dict[str, float]:
    """Medians with and without the plugin, and of their differences by pair, in ms."""
    pairs = []
    for index in range(rounds):
        order = [("with", arguments), ("without", WITHOUT + arguments)]
        # Neither side always runs on caches that the other has warmed.
        found = {name: seconds(given, directory) for name, given in order[:: (-1) ** index]}
        pairs.append((found["with"] * 1000, found["without"] * 1000))
    return {
        "with_ms": round(statistics.median(one for one, _ in pairs), 2),
        "without_ms": round(statistics.median(other for _, other in pairs), 2),
        "added_ms": round(statistics.median(one - other for one, other in pairs), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 40 s")
    rounds = 13 if parser.parse_args().quick else 41
    started = time.monotonic()
    report: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as directory:
        for given in STARTS.values():
            compare(given, 1, directory)
        measured = {name: compare(given, rounds, directory) for name, given in STARTS.items()}
    for name, numbers in measured.items():
        print(f"{name}: {numbers}")
        report[name] = numbers
    worst = max(numbers["added_ms"] for numbers in measured.values())
    seconds_used = round(time.monotonic() - started, 1)
    print(json.dumps({"startup_added_ms": worst, **report, "seconds": seconds_used}))


if __name__ == "__main__":
    main()
