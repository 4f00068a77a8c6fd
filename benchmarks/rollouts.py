"""False alarms and false passes: healthy rollouts in a row on the lab, then rollouts with faults.

One lab, one session, one workload for each kind of Service. A rollout is judged as the ready-made
suite does it, by DP-01 (or PS-02 where the client has session affinity) and DP-04. It passes when
these checks do under ``example_suites/emulated.yaml``, which makes allowance for stalls of the
emulated machine; a warning passes too and is counted apart.

The faults differ in kind and in the moment at which they are put in. Each is put in while it can
still do harm, so a rollout that passes is a false pass. ``node_unreachable`` harms no connection;
the record of that node has a gap, so nothing is proven.

The last line is one JSON object. ``false_alarms`` are healthy rollouts that did not pass,
``false_passes`` rollouts with a fault that did, ``named`` those whose first cause bears the name of
the fault. Emulation takes most of the time: about 45 s a rollout. ``--skip`` continues where an
earlier call with the same ``--seed`` ended.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pytest_ipvs.checks import CATALOGUE, judge_rollout
from pytest_ipvs.cluster import Cluster
from pytest_ipvs.judged import judged
from pytest_ipvs.labrun import start_lab
from pytest_ipvs.policy import Policy, load_policy
from pytest_ipvs.rollout import Result, Rollout, RolloutError, Workload
from pytest_ipvs.rollout.disrupt import wait_complete
from pytest_ipvs.rollout.target import find_target
from pytest_ipvs.settings import resolve

EMULATED = Path(__file__).parents[1] / "example_suites" / "emulated.yaml"
Moment = Literal["before", "baseline", "disruption", "settle"]
ANY: tuple[Moment, ...] = ("before", "baseline", "disruption", "settle")
# The longest that a fault may come after its moment has begun: old pods have not ended yet, or the
# client has still a whole round of its ports to go.
LATEST = 3.0
# What strikes a pod at its deletion must come before the last one is deleted.
SOON = {"pod_dies_early": 1.0}
FAULTS: dict[str, tuple[Moment, ...]] = {
    "reuse_leftover": ANY[:3],
    "pod_dies_early": ANY[:3],
    "template_sticks": ANY[:2],
    "ready_before_listening": ANY[:2],
    "readiness_lag": ANY[:2],
    "no_endpoints": ANY[:2],
    "stale_real_server": ANY,
    "server_resets": ANY,
    "syn_dropped": ANY,
    "node_unreachable": ANY[:3],
}
AFFINE = ("template_sticks",)
# The node behind which the client is, where a fault of one node would else miss the traffic.
HERE = {"stale_real_server": "node-1"}
# All ports come round in 6 s, within the 10 s for which IPVS remembers a reset connection.
PACE = {
    "ipvs_rate": 25,
    "ipvs_source_ports": 150,
    "ipvs_baseline": 7,
    "ipvs_settle": 12,
    "ipvs_pre_stop": 5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A fault, when it comes, and how many seconds after that moment."""

    fault: str
    moment: Moment
    delay: float


def plan(seed: int) -> Iterator[Planned]:
    """Faults without end: each kind once in a turn, in changing order, at changing moments."""
    chance = random.Random(seed)
    left: dict[str, list[Moment]] = {}
    while True:
        for fault in chance.sample(sorted(FAULTS), len(FAULTS)):
            if not left.get(fault):
                left[fault] = chance.sample(FAULTS[fault], len(FAULTS[fault]))
            moment = left[fault].pop()
            late = moment in ("disruption", "settle")
            delay = round(chance.uniform(0, SOON.get(fault, LATEST)), 1) if late else 0.0
            yield Planned(fault=fault, moment=moment, delay=delay)


def roll(
    cluster: Cluster,
    workload: Workload,
    change: Callable[[Rollout], object],
    handle: Any,
    at: Planned | None,
) -> Result:
    """One rollout under traffic, with the planned fault or without."""

    def put(moment: Moment) -> None:
        if at is not None and at.moment == moment:
            time.sleep(at.delay)
            handle.fault(at.fault, HERE.get(at.fault), workload_service(workload))

    put("before")
    with ThreadPoolExecutor(1) as beside, Rollout(cluster, workload) as run:
        put("baseline")
        coming = beside.submit(put, "disruption")
        change(run)
        coming.result()
        put("settle")
    assert run.result is not None
    return run.result


def workload_service(workload: Workload) -> str:
    return f"{workload.namespace}/{workload.service}"


def judge(result: Result, policy: Policy) -> tuple[str, bool]:
    """ "passed", "failed" or "inconclusive", and whether there was a warning."""
    words, warned = {result.verdict}, False
    for check in ("PS-02" if result.affinity else "DP-01", "DP-04"):
        outcome = judge_rollout(check, judged(result, check), policy=policy)
        severities = {finding.severity for finding in outcome.findings}
        warned |= "warn" in severities
        words |= {"failed"} if "fail" in severities else set()
        words |= {"inconclusive"} if outcome.not_measured else set()
    return next(word for word in ("failed", "inconclusive", "passed") if word in words), warned


class Bench:
    """The lab, its workloads, and the rollouts that were done."""

    def __init__(self, cluster: Cluster, handle: Any) -> None:
        self.cluster, self.handle = cluster, handle
        self.seconds: list[float] = []
        self.named = self.warned = 0

    def one(self, label: str, workload: Workload, at: Planned | None = None) -> str:
        """One rollout from a cluster at rest to its verdict; a line says how it went."""
        began = time.monotonic()
        change = (lambda run: run.delete_pods(1)) if at and at.fault in AFFINE else Rollout.restart
        numbers, causes = "", ""
        try:
            result = roll(self.cluster, workload, change, self.handle, at)
        except RolloutError as error:
            word, causes = "error", str(error)
        else:
            word, warned = judge(result, self.cluster.policy)
            self.warned += warned
            kinds = [cause.kind for cause in result.cause.causes] if result.cause else []
            self.named += bool(at and kinds[:1] == [at.fault])
            numbers = (
                f"{result.results.connections} connections, {sum(result.failures.values())} "
                f"failed, {result.reused_tuples} re-used after, {result.resent} resent, "
            )
            causes = "; ".join([*kinds, *result.reasons])
        finally:
            self.handle.clear()
        if at is not None:
            self._rest(workload)
        took = time.monotonic() - began
        self.seconds.append(took)
        print(f"{label}: {word}, {numbers}{took:.0f} s{f': {causes}' * bool(causes)}", flush=True)
        return word

    def _rest(self, workload: Workload) -> None:
        """What the last fault has left must not be taken for the next one's doing."""
        api = self.cluster.api
        target = find_target(api, workload.target, service=workload.service)
        wait_complete(api, target, timeout=60, say=lambda _: None, pause=time.sleep)
        deadline = time.monotonic() + 60
        while True:
            # A node that could not be reached a moment ago would not be asked again yet.
            self.cluster.pool.forgive()
            if self.cluster.converged(20):
                return
            if time.monotonic() > deadline:
                raise SystemExit("the lab did not come to rest after a fault")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start the lab, do the rollouts, count their verdicts."""
    wanted = {"ipvs_lab": True, "ipvs_lab_name": "rollouts", "ipvs_allow_disruption": True, **PACE}
    settings, lab = start_lab(resolve(wanted, {}, {}, {}), lambda text: print(text, flush=True))
    assert lab is not None
    healthy: Counter[str] = Counter()
    faulty: dict[str, Counter[str]] = {}
    with ExitStack() as stack:
        stack.callback(lab.close)
        cluster = Cluster(settings, load_policy(EMULATED, CATALOGUE))
        stack.callback(cluster.close)
        bench = Bench(cluster, lab.handle)
        plain = stack.enter_context(Workload(cluster))
        for number in range(1, options.healthy + 1):
            healthy[bench.one(f"healthy {number}", plain)] += 1
        row = islice(plan(options.seed), options.skip, options.skip + options.faulty)
        for number, at in enumerate(row, options.skip + 1):
            label = f"fault {number}, {at.fault} at {at.moment} +{at.delay:g} s"
            with ExitStack() as own:
                workload = plain
                if at.fault in AFFINE:
                    affine = Workload(cluster, replicas=2, affinity=True)
                    workload = own.enter_context(affine)
                word = bench.one(label, workload, at)
            faulty.setdefault(at.fault, Counter())[word] += 1
    verdicts = sum(faulty.values(), Counter[str]())
    return {
        "false_alarms": options.healthy - healthy["passed"],
        "false_passes": verdicts["passed"],
        "healthy": dict(healthy),
        "faulty": dict(verdicts),
        "by_fault": {fault: dict(counts) for fault, counts in sorted(faulty.items())},
        "named": bench.named,
        "warned": bench.warned,
        "seconds_per_rollout": round(statistics.median(bench.seconds), 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one of each kind, about two minutes")
    parser.add_argument("--healthy", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--faulty", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--skip", type=int, default=0, help="so many faults of the row before")
    parser.add_argument("--seed", type=int, default=1, help="of the faults' row (default: 1)")
    options = parser.parse_args()
    if options.quick:
        options.healthy, options.faulty = 1, 1
    started = time.monotonic()
    report = measure(options)
    print(json.dumps({**report, "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
