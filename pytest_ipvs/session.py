"""What one run knows of its cluster: read once, shared by fixtures, markers and checks.

What belongs here: when something is read, what is kept, what is told once. What doesn't: pytest's
hooks (`active`), judging (`checks`), text (`report`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_ipvs.labrun import LabUseError
from pytest_ipvs.markers import select_nodes, spelled
from pytest_ipvs.report.rows import NodeRow, Row
from pytest_ipvs.settings import SettingsError

if TYPE_CHECKING:
    from pytest_ipvs.checks import Evidence
    from pytest_ipvs.cluster.cluster import Cluster
    from pytest_ipvs.cluster.handle import NodeHandle
    from pytest_ipvs.cluster.model import ProxyFacts, Snapshot
    from pytest_ipvs.policy import Policy
    from pytest_ipvs.rollout import Rollout, Workload
    from pytest_ipvs.settings import Settings
    from pytest_ipvs.traffic import Results


def known_errors() -> tuple[type[Exception], ...]:
    """Errors whose text is one sentence for the user, so that a traceback would only hide it."""
    from pytest_ipvs.cluster.errors import ClusterError
    from pytest_ipvs.policy import PolicyError
    from pytest_ipvs.rollout.errors import RolloutError
    from pytest_ipvs.traffic.run import TrafficError

    return (SettingsError, PolicyError, ClusterError, LabUseError, RolloutError, TrafficError)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Fail a test with the sentence of a known error instead of its traceback."""
    try:
        yield
    except known_errors() as error:
        pytest.fail(str(error), pytrace=False)


class IpvsSession:
    """The run's cluster, its snapshots, and the rows of the final table that wait to be sent."""

    def __init__(
        self,
        config: pytest.Config,
        settings: Settings,
        policy: Policy,
        progress: Callable[[str], None],
    ) -> None:
        self.config = config
        self.settings = settings
        self.policy = policy
        self.progress = progress
        self.rows: list[Row] = []
        self._cluster: Cluster | None = None
        self._first: Snapshot | None = None
        self._evidence: Evidence | None = None
        self._moment: Evidence | None = None
        self._detailed: Snapshot | None = None
        self._told: set[str] = set()
        self._workloads: list[Workload] = []

    def connect(self) -> Cluster:
        """The cluster, reached at the first call. Raises `ClusterError`."""
        if self._cluster is None:
            from pytest_ipvs.cluster.cluster import Cluster

            self._cluster = Cluster(self.settings, self.policy)
        return self._cluster

    def open_cluster(self) -> Cluster:
        """`connect` for tests: a cluster that can't be reached is one sentence."""
        with one_sentence():
            return self.connect()

    def first(self) -> Snapshot:
        """The snapshot of the start: reads every selected node once. Raises `ClusterError`."""
        if self._first is None:
            self._first = self.connect().snapshot()
        return self._first

    def adopt(self, first: Snapshot) -> None:
        """Use the snapshot that a pytest-xdist controller took, instead of reading again."""
        self._first = first

    def evidence(self, *, tables: bool = True, details: bool = False) -> Evidence:
        """What the checks judge, kept until the cluster is disrupted.

        Tables are read over time until nothing in them may still change by itself; for checks
        that look at no table one reading is enough. ``details`` are read once, with whatever is
        read at that time anyway. The baseline is an earlier reading than all others, so that
        counters have two moments.
        """
        from pytest_ipvs.checks import Evidence

        # Counters tell by what they grew since the start, so that is read first.
        baseline = self.first()
        cluster = self.connect()
        details = details or any(_must_be_told(facts.proxy) for facts in baseline.facts.values())
        # Nobody has them yet, and this reading can bring them along.
        bring = details and self._detailed is None
        snapshots: tuple[Snapshot, ...] = ()
        if self._evidence is None and tables:
            self.progress("reading the API and every node's table until they agree")
            snapshots = cluster.observe(progress=self.progress, details=bring)
            self._evidence = Evidence(snapshots=snapshots, policy=self.policy, baseline=baseline)
        elif bring or (self._evidence is None and self._moment is None):
            snapshots = (cluster.snapshot(details=bring),)
            if self._evidence is None:
                self._moment = Evidence(snapshots=snapshots, policy=self.policy, baseline=baseline)
        if bring:
            self._detailed = snapshots[0]
        if self._evidence is not None:
            self._evidence = self._with_details(self._evidence)
            return self._evidence
        assert self._moment is not None
        return self._moment

    def _with_details(self, evidence: Evidence) -> Evidence:
        """The evidence with the details that another reading brought."""
        from pytest_ipvs.cluster.reading import with_details

        if self._detailed is None or evidence.proxy_objects is not None:
            return evidence
        first, *others = evidence.snapshots
        made = replace(evidence, snapshots=(with_details(first, self._detailed), *others))
        made.memo.update(evidence.memo)
        return made

    def forget(self) -> None:
        """What was read before a disruption says nothing about the cluster after it."""
        self._evidence = self._moment = self._detailed = None

    def selected(self, item: pytest.Item) -> tuple[str, ...]:
        """Names of the nodes that a test's ipvs_nodes markers choose; skips where there is none."""
        marks = list(item.iter_markers("ipvs_nodes"))
        with one_sentence():
            nodes = self.connect().nodes
        names = tuple(node.name for node in select_nodes(nodes, marks))
        if not names:
            skip(no_match(len(nodes), marks))
        return names

    def handles(self, names: tuple[str, ...]) -> tuple[NodeHandle, ...]:
        """Nodes for a test."""
        with one_sentence():
            return tuple(self.connect().node(name) for name in names)

    def require(self, names: tuple[str, ...]) -> None:
        """The first test that needs a silent node is an error; the others are not run.

        A node that does not answer is one fault. It makes the run fail once, with its name,
        instead of once for each test that would have needed it.
        """
        silent = {n: r for n, r in self.first().unreachable.items() if n in names}
        if news := self.tell(silent):
            pytest.fail(news, pytrace=False)
        if silent:
            skip(not_run(silent))

    def tell(self, silent: Mapping[str, str]) -> str:
        """Text about the silent nodes that were not told of before in this process, or ""."""
        news = {name: reason for name, reason in silent.items() if name not in self._told}
        self._told.update(news)
        self.rows += [NodeRow(node=name, reason=reason) for name, reason in news.items()]
        return "\n".join(f"{name} did not answer: {reason}" for name, reason in news.items())

    def take_rows(self) -> list[Row]:
        """Rows that were not sent with a report yet."""
        rows, self.rows = self.rows, []
        return rows

    @contextmanager
    def rollout(self, target: str | Workload, **options: Any) -> Iterator[Rollout]:
        """A scripted disruption under traffic; its numbers go to the final table."""
        from pytest_ipvs.report.rollouts import rollout_row
        from pytest_ipvs.rollout import Rollout

        try:
            with one_sentence():
                run = Rollout(self.connect(), target, progress=self.progress, **options)
                with run:
                    yield run
        finally:
            self.forget()
        # Without a result the run ended by an error, which is the test's.
        if run.result is not None:
            self.rows.append(rollout_row(str(target), run.result))
            self.config.hook.pytest_ipvs_rollout_finished(
                config=self.config, target=str(target), result=run.result
            )

    def traffic(self, address: str, port: int, **options: Any) -> Results:
        """Short connections to an address, without a rollout."""
        from pytest_ipvs.traffic import run_traffic

        with one_sentence():
            return run_traffic(self.connect(), address, port, progress=self.progress, **options)

    def workload(self, **options: Any) -> Workload:
        """A throw-away Deployment and Service, removed by `remove_workloads`."""
        from pytest_ipvs.rollout import Workload

        with one_sentence():
            workload = Workload(self.connect(), progress=self.progress, **options)
            self._workloads.append(workload)
            workload.create()
        self.forget()
        return workload

    def remove_workloads(self) -> None:
        """Remove every workload that was made, newest first."""
        with one_sentence():
            while self._workloads:
                self._workloads.pop().remove()
        self.forget()

    def close(self) -> None:
        """Let go of connections."""
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


def _must_be_told(proxy: ProxyFacts) -> bool:
    """Whether a kube-proxy did not say all itself: then its objects and command line do."""
    return None in (proxy.mode, proxy.version, proxy.config)


def skip(reason: str) -> NoReturn:
    """Skip a test and name its own line, not the plugin's, as the place."""
    raise pytest.skip.Exception(reason, _use_item_location=True)


def no_match(nodes: int, marks: Sequence[pytest.Mark]) -> str:
    """ "none of the 3 nodes matches ipvs_nodes(role='edge')"."""
    wanted = " and ".join(spelled(mark) for mark in marks) or "the selection"
    return f"none of the {nodes} nodes matches {wanted}"


def not_run(silent: Mapping[str, str]) -> str:
    """ "not run because node-2 did not answer"."""
    names = sorted(silent)
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"not run because {text} did not answer"
