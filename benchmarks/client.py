"""The client beside ab, wrk and hey: connections per processor second, schedule, first detection.

All of them make one connection per request (Connection: close) to one fast server on loopback,
from one processor, the server on another. They take turns, and each is compared with what ran in
the same round: a shared machine changes its speed by a half within seconds. Medians count. ab, wrk
and hey are Debian's apache2-utils, wrk and hey; one that is not installed is ``null`` and a note on
stderr.

With ``--lab``, ``first_detection_s`` is what ``detection.py`` measures on the embedded lab: seconds
from an old pod's end until each client notices ``reuse_leftover``, ``null`` where one saw nothing
within two minutes. Without it all are ``null``.

The last line is one JSON object, its keys are named in the documentation. ``cps_per_cpu`` are the
medians themselves, in connections per second of processor time, user and system.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import select
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detection import first_detection

import pytest_ipvs.traffic

CLIENT = Path(pytest_ipvs.traffic.__file__).with_name("client.py")
TOOLS = {"ab": "apache2-utils", "wrk": "wrk", "hey": "hey"}
BODY = b"web-1\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(BODY), BODY)
AT_ONCE = 16
TRIAL = 1.5  # seconds
MORE = 1.5  # times what our client can do
DONE = {
    "ab": re.compile(r"Complete requests:\s+(\d+)"),
    "wrk": re.compile(r"(\d+) requests in"),
    "hey": re.compile(r"\[200\]\s+(\d+) responses"),
}


def serve(listener: socket.socket) -> None:
    """Answer each connection and close it, on raw descriptors: the server must not be the limit."""
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    accept = listener._accept  # type: ignore[attr-defined]
    while True:
        for fd, _ in epoll.poll():
            if fd != listener.fileno():
                try:
                    os.read(fd, 4096)
                    os.write(fd, ANSWER)
                except OSError:
                    pass
                os.close(fd)
                continue
            for _ in range(64):
                try:
                    new, _ = accept()
                except OSError:
                    break
                epoll.register(new, select.EPOLLIN)


@contextmanager
def server(processors: list[int]) -> Iterator[int]:
    """The server in a process of its own, on the last processor."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    pid = os.fork()
    if not pid:
        try:
            os.sched_setaffinity(0, {processors[-1]})
            serve(listener)
        finally:
            os._exit(0)
    port = listener.getsockname()[1]
    listener.close()
    try:
        yield port
    finally:
        os.kill(pid, 15)
        os.waitpid(pid, 0)


def run(command: list[str], processor: int) -> tuple[str, float]:
    """A command's output and the processor seconds that it took, on one processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, {processor}),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(
            f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}"
        )
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return done.stdout, used


def ours(port: int, rate: float, seconds: float, **plan: Any) -> list[str]:
    """The command of our client, with its own window of source ports."""
    fields = {"host": "127.0.0.1", "port": port, "rate": rate, "duration": seconds, **plan}
    return [sys.executable, "-E", "-S", str(CLIENT), json.dumps(fields)]


def theirs(tool: str, url: str, seconds: int) -> list[str]:
    """Their commands: one connection per request, a few at once, one thread."""
    at_once = str(AT_ONCE)
    if tool == "ab":
        return ["ab", "-q", "-r", "-t", str(seconds), "-n", "9999999", "-c", at_once, url]
    if tool == "wrk":
        return ["wrk", "-t1", f"-c{at_once}", f"-d{seconds}s", "-H", "Connection: close", url]
    return ["hey", "-z", f"{seconds}s", "-c", at_once, "-cpus", "1", "-disable-keepalive", url]


def ended(output: str) -> dict[str, int]:
    """The totals in the last line of our client."""
    totals: dict[str, int] = json.loads(output.splitlines()[-1])["totals"]
    return totals


def compare(port: int, installed: list[str], rounds: int, seconds: int) -> dict[str, list[float]]:
    """Connections per processor second by tool, one number a round."""
    found: dict[str, list[float]] = {}
    processor = min(os.sched_getaffinity(0))
    url = f"http://127.0.0.1:{port}/"
    # Theirs go as fast as they can, so ours gets more to do than it can, also when the machine is
    # faster than at first: what it does not manage is given up at once. With less to do it would
    # wait for each single event, and wakes would be what is measured.
    busy = {"give_up": 0.02, "late_tolerance": 0.02, "ports": 5000, "sample": 1}
    output, _ = run(ours(port, 100_000, TRIAL, **busy), processor)
    rate = MORE * ended(output)["ok"] / TRIAL
    for number in range(rounds):
        turn = ["ours", *installed]
        for name in turn[number % len(turn) :] + turn[: number % len(turn)]:
            if name == "ours":
                output, used = run(ours(port, rate, seconds, **busy), processor)
                made = ended(output).get("ok", 0)
            else:
                output, used = run(theirs(name, url, seconds), processor)
                match = DONE[name].search(output)
                made = int(match[1]) if match else 0
            if not made:
                sys.exit(f"{name} made no connection: {output[-300:]}")
            found.setdefault(name, []).append(made / used)
    for name, rates in found.items():
        shown = ", ".join(f"{rate:.0f}" for rate in rates)
        print(f"{name}: {shown} connections per processor second")
    return found


def ratio(found: dict[str, list[float]], tool: str) -> float:
    """Ours against that tool's: the median of what the rounds say."""
    pairs = zip(found["ours"], found[tool], strict=True)
    return round(statistics.median(our / their for our, their in pairs), 3)


def schedule(port: int, rounds: int, seconds: float) -> float:
    """The share of connections that were late or not made at 2,000 per second, median of rounds."""
    shares = []
    for _ in range(rounds):
        output, _ = run(ours(port, 2000, seconds, ports=4000), min(os.sched_getaffinity(0)))
        lines = [json.loads(line) for line in output.splitlines()]
        due = sum(line.get("n", 0) for line in lines if line["k"] == "s")
        missed = sum(line.get("late", 0) for line in lines if line["k"] == "s")
        missed += ended(output).get("missed_schedule", 0)
        shares.append(missed / due)
    print("schedule missed: " + ", ".join(f"{share:.4%}" for share in shares))
    return statistics.median(shares)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, under 40 s")
    parser.add_argument("--lab", action="store_true", help="first detection too, some 8 minutes")
    options = parser.parse_args()
    installed = []
    for tool, package in TOOLS.items():
        if shutil.which(tool):
            installed.append(tool)
        else:
            print(f"{tool} is not installed: apt-get install {package}", file=sys.stderr)
    rounds, seconds = (3, 2) if options.quick else (9, 3)
    started = time.monotonic()
    with server(sorted(os.sched_getaffinity(0))) as port:
        found = compare(port, installed, rounds, seconds)
        missed = schedule(port, 1 if options.quick else 3, 5.0)
    detection: dict[str, float | None] = dict.fromkeys(("ours", *TOOLS))
    if options.lab:
        detection |= first_detection(theirs, installed)
    else:
        print("first_detection_s is not measured: it needs --lab", file=sys.stderr)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    best = max(installed, key=lambda name: medians[name], default=None)
    report = {
        "cps_per_cpu_vs_best": ratio(found, best) if best else None,
        "cps_per_cpu_vs_hey": ratio(found, "hey") if "hey" in found else None,
        "schedule_miss": round(missed, 6),
        "first_detection_s": detection,
        "cps_per_cpu": {name: round(rate) for name, rate in medians.items()},
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
