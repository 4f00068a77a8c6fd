"""From a client's lines to results, while it still runs."""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytest_ipvs.traffic.results import KEPT_SAMPLES, Move, Results, Sample, Second, add


class Collector:
    """Takes one client's output in pieces of any size and keeps what adds up.

    Memory grows by one small record for each second of the run, whatever the rate.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.started: tuple[float, float] | None = None  # its clock, its uptime
        self.pid = 0
        self.window: tuple[int, int] | None = None
        self.end_reason: str | None = None
        self._rest = ""
        self._seconds: dict[int, Second] = {}
        self._histogram: Counter[int] = Counter()
        self._first: dict[tuple[str, str], list[Sample]] = {}
        self._last: dict[tuple[str, str], deque[Sample]] = {}
        self._totals: Mapping[str, int] = {}
        self._bad_lines: list[str] = []
        self._offset: tuple[float, float] | None = None  # theirs minus ours, and its error
        self._moves: deque[Move] = deque(maxlen=KEPT_SAMPLES)
        self.told_at = 0.0  # its clock at its last output
        self.told_to_stop = False  # by a signal, as pods are
        self._least, self._most = -math.inf, math.inf

    def measure_clock(self, uptime: float, before: float, after: float) -> None:
        """Its machine's uptime, read between two moments of our clock (Unix seconds)."""
        if self.started is None or uptime <= 0:
            return
        theirs = self.started[0] + uptime - self.started[1]
        # /proc/uptime has two digits after the point.
        error = (after - before) / 2 + 0.01
        if self._offset is None or error < self._offset[1]:
            self._offset = (theirs - (before + after) / 2, error)

    def bound_clock(self, most: float) -> None:
        """Its clock is at most so many seconds ahead of ours: what we asked for began after."""
        self._most = most

    def feed(self, text: str, *, received: float | None = None) -> None:
        """The next piece of output; an unfinished last line waits for the next one.

        ``received``: our clock, where the output is seen as it is made.
        """
        lines = (self._rest + text).split("\n")
        self._rest = lines.pop()
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                if len(self._bad_lines) < 5:
                    self._bad_lines.append(line[:120])
        if received is not None and self.told_at:
            # It told before we heard, so it is at least so far ahead.
            self._least = max(self._least, self.told_at - received)

    def _take(self, line: dict[str, Any]) -> None:
        kind = line["k"]
        if kind == "s":
            second = Second(
                t=line["t"],
                due=line.get("n", 0),
                classes=line.get("c", {}),
                pods=line.get("p", {}),
                reused=line.get("r", 0),
                reused_after=line.get("rp", {}),
                failed_after=line.get("fp", {}),
                resent=line.get("ret", 0),
                resent_after=line.get("re", {}),
                slow=line.get("slow", 0),
                late=line.get("late", 0),
                waited=line.get("wait", 0),
                max_connect_ms=line.get("max", 0.0),
                exchanges=line.get("x", 0),
            )
            found = self._seconds.get(second.t)
            self._seconds[second.t] = second if found is None else add(found, second)
        elif kind == "h":
            self._histogram.update({int(bucket): n for bucket, n in line["b"].items()})
        elif kind in ("f", "w"):
            key = (kind, line["cls"])
            first = self._first.setdefault(key, [])
            if len(first) < KEPT_SAMPLES:
                first.append(self._sample(line))
            else:
                last = self._last.setdefault(key, deque(maxlen=KEPT_SAMPLES))
                last.append(self._sample(line))
        elif kind == "m":
            self._moves.append(
                Move(
                    t=line["t"],
                    before=line["was"],
                    after=line["pod"],
                    source_port=line["sport"],
                    reused=line["reused"],
                )
            )
        elif kind == "t":
            self.told_at = line["t"]
        elif kind == "start":
            self.started = (line["t"], line["uptime"])
            self.pid = line["pid"]
            if ports := line.get("window"):
                self.window = (ports[0], ports[1])
        elif kind == "end":
            self._totals = line["totals"]
            self.end_reason = line["reason"]

    def _sample(self, line: Mapping[str, Any]) -> Sample:
        return Sample(
            t=line["t"],
            kind="failure" if line["k"] == "f" else "slow",
            name=line["cls"],
            errno=line.get("err", ""),
            source=line["src"],
            source_port=line["sport"],
            target=self.target,
            connect_ms=line["ms"],
            resent=line["resent"],
            reused=line["reused"],
            previous_pod=line.get("prev", ""),
            previous_at=line.get("prev_t"),
            previous_ending=line.get("prev_end", ""),
            pod=line.get("pod", ""),
            detail=line.get("detail", ""),
            held=line.get("held"),
        )

    def results(self, problems: tuple[str, ...] = ()) -> Results:
        """What is known so far, on our clock."""
        offset, error = self._clock()
        # Whole seconds stay whole: moving by a fraction would need a split of counts.
        shift = round(offset)
        found = list(problems)
        if self._bad_lines:
            line = self._bad_lines[0]
            found.append(f"the client's output has a line that cannot be read: {line!r}")
        results = Results(
            seconds=tuple(replace(self._seconds[t], t=t - shift) for t in sorted(self._seconds)),
            samples=tuple(sorted(map(self._on_our_clock, self._samples()), key=lambda s: s.t)),
            histogram=dict(self._histogram),
            endings={k: v for k, v in self._totals.items() if k.startswith(("server_", "client_"))},
            # After "heartbeat" or "signal" it ended early: the rest was not seen.
            finished=self.end_reason in ("duration", "stopped")
            or (self.end_reason == "signal" and self.told_to_stop),
            clock_error=error,
            moves=tuple(replace(move, t=move.t - offset) for move in self._moves),
            windows=(self.window,) if self.window else (),
        )
        if self.end_reason is not None:
            told = {k: v for k, v in self._totals.items() if k not in results.endings}
            if told != {k: v for k, v in results.classes.items() if v}:
                found.append("the client's lines do not add up to the totals at its end")
        return replace(results, problems=tuple(found))

    def _clock(self) -> tuple[float, float]:
        """Its clock minus ours, and the error of that."""
        if self._offset is not None:
            return self._offset
        # The shortest delay of a line is far below the time that it took to start.
        width = self._most - self._least
        return (self._least, width) if math.isfinite(width) else (0.0, 0.0)

    def _samples(self) -> list[Sample]:
        kept = [sample for samples in self._first.values() for sample in samples]
        return kept + [sample for samples in self._last.values() for sample in samples]

    def _on_our_clock(self, sample: Sample) -> Sample:
        offset = self._clock()[0]
        at = sample.previous_at
        return replace(sample, t=sample.t - offset, previous_at=None if at is None else at - offset)
