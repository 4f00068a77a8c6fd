"""Rollouts that do not roll: results made of numbers, judged and explained by the real code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

from pytest_ipvs.cluster import ApiError
from pytest_ipvs.policy import Policy
from pytest_ipvs.rollout import KernelProbe, NotPossibleHere, Result, RolloutError, held, paths
from pytest_ipvs.rollout.cause import diagnose
from pytest_ipvs.rollout.timeline import Phase, PodTrace, Timeline
from pytest_ipvs.rollout.verdict import judge
from pytest_ipvs.traffic.results import Results, Sample, Second

BEGAN, DISRUPTED, LEFT, ENDED = 1000, 1010, 1020, 1100

TIMELINE = Timeline(
    started=BEGAN,
    ended=ENDED,
    phases=(
        Phase(name="baseline", start=BEGAN, end=DISRUPTED),
        Phase(name="restart", start=DISRUPTED, end=LEFT),
        Phase(name="settle", start=LEFT, end=ENDED),
    ),
    pods=(
        PodTrace(
            name="web-old",
            uid="1",
            address="10.244.1.5",
            old=True,
            first_seen=BEGAN,
            ready_at=BEGAN,
            left_at=LEFT,
            gone_at=LEFT + 5,
        ),
        PodTrace(
            name="web-new", uid="2", address="10.244.2.6", first_seen=DISRUPTED, ready_at=LEFT - 2
        ),
    ),
)


def seconds(failing: Mapping[str, int], *, reused: int, resent: int) -> Iterator[Second]:
    """Twenty connections a second; ``failing`` of each of the last seconds fail."""
    for t in range(BEGAN, ENDED):
        late = t >= LEFT + 10
        failed = dict(failing) if late else {}
        ok = 20 - sum(failed.values())
        yield Second(
            t=t,
            due=20,
            classes={"ok": ok, **failed},
            pods={"web-new" if t >= LEFT else "web-old": ok},
            reused=reused if t >= DISRUPTED else 0,
            reused_after={"web-old": reused} if LEFT <= t < LEFT + 10 else {"web-new": reused},
            failed_after={"web-old": sum(failed.values())} if failed else {},
            resent=resent if late else 0,
            resent_after={"server_rst": resent} if late and resent else {},
        )


def sample(kind: Any, name: str) -> Sample:
    return Sample(
        t=LEFT + 12.5,
        kind=kind,
        name=name,
        errno="EHOSTUNREACH" if kind == "failure" else "",
        source="10.244.1.250",
        source_port=20007,
        target="10.96.0.10:80",
        connect_ms=None if kind == "failure" else 1004.0,
        resent=0 if kind == "failure" else 1,
        reused=True,
        previous_pod="web-old",
        previous_at=LEFT - 1.0,
    )


def results(
    failing: Mapping[str, int] | None = None,
    *,
    reused: int = 20,
    resent: int = 0,
    finished: bool = True,
) -> Results:
    """What a client saw."""
    failing = failing or {}
    samples = [sample("failure", name) for name in failing]
    samples += [sample("slow", "ok")] if resent else []
    return Results(
        seconds=tuple(seconds(failing, reused=reused, resent=resent)),
        samples=tuple(samples),
        histogram={10: 1},
        finished=finished,
    )


def result(target: str = "demo/web", *, affinity: bool = False, **client: Any) -> Result:
    """A rollout's result, with the real verdict and the real cause."""
    seen = results(**client)
    verdict, reasons = judge(seen, TIMELINE, Policy())
    return Result(
        target=target,
        address="10.96.0.10:80",
        results=seen,
        timeline=TIMELINE,
        verdict=verdict,
        reasons=reasons,
        drain_budget=210.0,
        affinity=affinity,
        cause=diagnose(seen, TIMELINE, affinity=affinity),
        client="node node-1",
    )


class FakeRollout:
    """`pytest_ipvs.rollout.Rollout` without a cluster; ``client`` is what `results` takes."""

    client: ClassVar[Mapping[str, Any]] = {}
    made: ClassVar[list[str]] = []
    refusal = ""
    forbidden = ""
    closed: ClassVar[tuple[str, ...]] = ("node-port@local",)  # ways on which nothing answers

    def __init__(self, cluster: Any, target: Any, *, progress: Any, **options: Any) -> None:
        self.name = str(target)
        self.target = SimpleNamespace(balancer=getattr(target, "balancer", ""))
        self.affinity = bool(getattr(target, "affinity", False))
        self.progress = progress
        self.probe: KernelProbe | None = None
        self.abandoned = False
        self.result: Result | None = None
        self.made.append(self.name)

    def __enter__(self) -> FakeRollout:
        if self.refusal:
            raise RolloutError(self.refusal)
        self.progress(f"{self.name}: 20 connections a second")
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and not self.abandoned:
            made = result(self.name, affinity=self.affinity, **self.client)
            self.result = replace(made, probe=self.probe)

    def through(self, way: str) -> Result:
        if way in self.closed:
            raise RolloutError("no connection succeeded before the disruption")
        assert self.result is not None
        return self.result

    def abandon(self) -> None:
        self.abandoned = True

    def endpoint_leaves(self) -> None:
        self.progress(f"{self.name}: an endpoint leaves")
        self.probe = KernelProbe(pod="web-old", exposed=400, sysctls={}, fix_b=True)

    def drain(self) -> None:
        self.progress(f"{self.name}: drain node-2")
        if self.forbidden:
            raise ApiError(403, "Forbidden", self.forbidden, "/api/v1/nodes/node-2")

    def restart_kube_proxy(self) -> None:
        raise NotPossibleHere("kube-proxy on node-1 is no pod of namespace kube-system")

    def restart(self) -> None:
        self.progress(f"{self.name}: restart")

    def scale(self, replicas: int) -> None:
        self.progress(f"{self.name}: scale to {replicas}")

    def delete_pods(self, count: int) -> None:
        self.progress(f"{self.name}: delete {count} pods")

    @property
    def failures(self) -> Any:
        assert self.result is not None
        return self.result.failures


class FakeWorkload:
    """`pytest_ipvs.rollout.Workload` without a cluster."""

    alive: ClassVar[set[str]] = set()
    count = 0
    balancer = ""

    def __init__(self, cluster: Any, *, progress: Any, **options: Any) -> None:
        FakeWorkload.count += 1
        self.affinity = options.get("affinity", False)
        self.namespace = f"pytest-ipvs-{FakeWorkload.count}"

    def __str__(self) -> str:
        return f"{self.namespace}/web"

    def create(self) -> FakeWorkload:
        self.alive.add(self.namespace)
        return self

    def remove(self) -> None:
        self.alive.discard(self.namespace)


TRIED = (
    *((paths, name) for name in ("same_port", "cross_node", "own_addresses", "host_port")),
    (held, "held"),
)


def install_rollouts(
    *, refusal: str = "", forbidden: str = "", dead: bool = False, **client: Any
) -> None:
    """Let the plugin's rollouts end like this; ``dead``: and single paths."""
    from pytest_ipvs import rollout

    FakeRollout.client, FakeRollout.refusal = client, refusal
    FakeRollout.forbidden = forbidden
    FakeRollout.closed = ("node-port@local",)
    FakeRollout.made, FakeWorkload.alive, FakeWorkload.balancer = [], set(), ""
    rollout.Rollout = FakeRollout  # type: ignore[assignment,misc]
    rollout.Workload = FakeWorkload  # type: ignore[assignment,misc]
    tried = (paths.Path(what="a path", tried=30, failed={"refused": 30} if dead else {}),)
    for module, name in TRIED:
        setattr(module, name, lambda *_: tried)
