"""The hooks of a run with a cluster: registered by `plugin` only when one is configured."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Generator, Mapping
from typing import Any

import pytest

from pytest_ipvs import markers
from pytest_ipvs.assertions import InconclusiveError
from pytest_ipvs.checker import NOT_ALLOWED, verdict_key
from pytest_ipvs.labrun import RunningLab, start_lab
from pytest_ipvs.policy import Policy, load_policy
from pytest_ipvs.report.header import header
from pytest_ipvs.report.progress import Progress
from pytest_ipvs.report.rows import CheckRow, Row, from_plain, to_plain
from pytest_ipvs.report.summary import summary, unused_waivers
from pytest_ipvs.requirements import missing, nodes_of, wrong_sysctls
from pytest_ipvs.selectors import check_matches
from pytest_ipvs.session import IpvsSession, known_errors, no_match, one_sentence, skip
from pytest_ipvs.settings import Settings, SettingsError, policy_path, resolve
from pytest_ipvs.turns import Turns

DISRUPTIVE_FIXTURES = frozenset({"ipvs_rollout", "ipvs_workload"})
DIRECT_FIXTURES = frozenset({"ipvs_node", "ipvs_nodes"})
GROUP = "ipvs-disruptive"
# Word and letter of a failure that is not a finding.
WORDS = {"inconclusive": ("I", "INCONCLUSIVE"), "not measured": ("N", "NOT MEASURED")}

Sources = tuple[Mapping[str, Any], Mapping[str, str], Mapping[str, Any]]


def activate(
    config: pytest.Config, sources: Sources, worker: bytes | None, name: str
) -> Active | None:
    """Reach the cluster and register `Active`; ``None`` where the settings name no cluster.

    Under pytest-xdist only the controller resolves settings, boots the lab and reads the start;
    ``worker`` is what it hands out.
    """
    progress = Progress(config)
    lab: RunningLab | None = None
    try:
        if worker is not None:
            settings, policy, first, turns, config.option.loadgroup = pickle.loads(worker)
        else:
            settings, policy = _settings(config, sources)
            first, turns = None, None
        if not settings.active:
            return None
        if worker is None:
            settings, lab = start_lab(settings, progress)
        active = Active(IpvsSession(config, settings, policy, progress), lab, turns)
        # Registered before anything else may fail: unconfigure then takes the lab down.
        config.pluginmanager.register(active, name)
        lab = None
        active.start(config, first)
    except known_errors() as error:
        if lab is not None:
            lab.close()
        raise pytest.UsageError(str(error)) from None
    return active


def _settings(config: pytest.Config, sources: Sources) -> tuple[Settings, Policy]:
    path = policy_path(*sources)
    policy = Policy()
    if path:
        from pytest_ipvs.checks import CATALOGUE

        policy = load_policy(path, CATALOGUE)
    settings = resolve(*sources, policy.settings, policy_name=path or "ipvs.yaml")
    chosen = config.hook.pytest_ipvs_settings(config=config, settings=settings)
    settings = chosen or settings
    return settings, policy.with_settings(settings)


def _let_sigterm_interrupt() -> None:
    """Let SIGTERM do what Ctrl-C does.

    A cancelled job and a deleted pod get it. It would end Python at once, and leave in the cluster
    what fixtures clean up.
    """
    ours = threading.current_thread() is threading.main_thread()
    if ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


class Active:
    """What pytest calls while a cluster is configured."""

    def __init__(
        self, session: IpvsSession, lab: RunningLab | None, turns: Turns | None = None
    ) -> None:
        self.session = session
        self.lab = lab
        self.turns = turns
        self._rows: list[Row] = []

    def start(self, config: pytest.Config, first: Any) -> None:
        """Reach the cluster, so that what can't work is told before any test is collected."""
        _let_sigterm_interrupt()
        self._refuse_unknown_checks()
        if first is not None:
            self.session.adopt(first)
        elif config.option.collectonly:
            # Collecting needs the nodes' names only: no node is read.
            self.session.connect().check_access()
        elif not hasattr(config, "workerinput"):
            self.session.progress("reading every node once")
            self.session.first()
        if config.getoption("dist", "no") == "load":
            # Tests that change the cluster share a group, and so a worker and its rollouts.
            # "load" ignores groups, "loadgroup" is the same otherwise.
            config.option.dist = "loadgroup"

    def close(self) -> None:
        """Mirror of `start`: connections first, then the machine they lead to."""
        try:
            self.session.close()
        finally:
            if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self.turns is not None and not hasattr(self.session.config, "workerinput"):
                self.turns.remove()
            if self.lab is not None:
                self.lab.close()
                self.lab = None

    def _refuse_unknown_checks(self) -> None:
        patterns = self.session.settings.checks
        if not patterns:
            return
        from pytest_ipvs.checks import CATALOGUE

        for pattern in patterns:
            if not any(check_matches(pattern.removeprefix("-"), name) for name in CATALOGUE):
                origin = self.session.settings.origin("checks")
                raise SettingsError(
                    f"{origin} has {pattern!r}, which matches no check, "
                    "expected ids or patterns of --ipvs-list-checks"
                )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Hand the worker what the controller resolved and read."""
        session = self.session
        option = session.config.option
        first = None if option.collectonly else session.first()
        self.turns = self.turns or Turns.make()
        grouped = option.dist == "loadgroup"
        told = (session.settings, session.policy, first, self.turns, grouped)
        node.workerinput["ipvs"] = pickle.dumps(told)

    def pytest_report_header(self, config: pytest.Config) -> list[str]:
        return header(self.session, self.lab, read_nodes=not config.option.collectonly)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "ipvs_node" not in metafunc.fixturenames:
            return
        marks = list(metafunc.definition.iter_markers("ipvs_nodes"))
        if markers.problems(metafunc.definition):
            # Refused with one sentence once everything is collected; an error raised here would
            # be a traceback.
            marks = []
        nodes = self.session.connect().nodes
        names = [node.name for node in markers.select_nodes(nodes, marks)]
        parameters: list[Any] = list(names)
        if not names:
            mark = pytest.mark.skip(reason=no_match(len(nodes), marks))
            parameters = [pytest.param("", id="no-node", marks=mark)]
        metafunc.parametrize("ipvs_node", parameters, indirect=True)

    # The plugin's own refusal of wrong markers wraps this one; nobody has reordered yet.
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        for item in items:
            if DISRUPTIVE_FIXTURES.intersection(getattr(item, "fixturenames", ())):
                item.add_marker("ipvs_disruptive")
            if item.get_closest_marker("ipvs_disruptive") and config.pluginmanager.has_plugin(
                "xdist"
            ):
                item.add_marker(pytest.mark.xdist_group(GROUP))
        patterns = self.session.settings.checks
        left_out = [item for item in items if patterns and not _chosen(item, patterns)]
        if left_out:
            items[:] = [item for item in items if item not in left_out]
            config.hook.pytest_deselected(items=left_out)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """One disruption at a time: two at once would spoil each other's record."""
        if self.turns is None or not item.get_closest_marker("ipvs_disruptive"):
            return (yield)
        with self.turns.taken():
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        disruptive = item.get_closest_marker("ipvs_disruptive")
        if disruptive and not self.session.settings.allow_disruption:
            self._row(item, "not measured", NOT_ALLOWED, always=True)
            skip(NOT_ALLOWED)
        with one_sentence():
            reason = missing(self.session, item)
        if reason:
            self._row(item, "not applicable", reason)
            skip(reason)
        # Here and not in a fixture: pytest keeps the error of a session's fixture, and would
        # repeat it for each test.
        if not DIRECT_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            with one_sentence():
                self.session.require(nodes_of(self.session, item))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Assert the sysctls that the test's markers name, before its body runs."""
        if item.get_closest_marker("ipvs_sysctl"):
            with one_sentence():
                text = wrong_sysctls(self.session, item)
            if text:
                pytest.fail(text, pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        rows = self.session.take_rows()
        mark = item.get_closest_marker("ipvs_check")
        if mark and report.failed and not item.stash.get(verdict_key, None):
            # The check never got to judge: something it builds on broke.
            first_line = str(call.excinfo.value if call.excinfo else "").splitlines()[:1]
            rows.append(CheckRow(check=mark.args[0], verdict="error", note="".join(first_line)))
            item.stash[verdict_key] = "error"
        if call.excinfo is not None and call.excinfo.errisinstance(InconclusiveError):
            item.stash[verdict_key] = "inconclusive"
        # Attributes of a report are builtin types, so that they cross from a pytest-xdist worker.
        vars(report)["ipvs_rows"] = [to_plain(row) for row in rows]
        vars(report)["ipvs_verdict"] = item.stash.get(verdict_key, "")
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._rows += [from_plain(plain) for plain in getattr(report, "ipvs_rows", ())]

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        word = WORDS.get(getattr(report, "ipvs_verdict", ""))
        if word is None or not report.failed or report.when != "call":
            return None
        return ("failed", *word)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        lines = summary(self._rows, self._unused_waivers())
        if lines:
            terminalreporter.write_sep("=", "ipvs summary")
            for line in lines:
                terminalreporter.write_line(line)

    def _unused_waivers(self) -> list[str]:
        session = self.session
        if not session.policy.waivers or session.settings.nodes or session.settings.node_selector:
            # On some of the nodes only, a waiver of another node has nothing to match.
            return []
        from pytest_ipvs.checks import CATALOGUE

        return unused_waivers(session.policy.waivers, self._rows, CATALOGUE)

    def _row(self, item: pytest.Item, verdict: Any, note: str, *, always: bool = False) -> None:
        mark = item.get_closest_marker("ipvs_check")
        if mark or always:
            name = mark.args[0] if mark else item.name
            self.session.rows.append(CheckRow(check=name, verdict=verdict, note=note))
            item.stash[verdict_key] = verdict


def _chosen(item: pytest.Item, patterns: tuple[str, ...]) -> bool:
    """Whether --ipvs-checks keeps a test; tests that run no check of the catalogue stay."""
    mark = item.get_closest_marker("ipvs_check")
    if mark is None:
        return True
    wanted = [pattern for pattern in patterns if not pattern.startswith("-")]
    refused = [pattern[1:] for pattern in patterns if pattern.startswith("-")]
    check = mark.args[0]
    return (not wanted or any(check_matches(pattern, check) for pattern in wanted)) and not any(
        check_matches(pattern, check) for pattern in refused
    )
