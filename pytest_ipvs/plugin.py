"""The pytest face: options, markers, fixtures, and the switch from inert to active.

Every pytest start with this package installed imports this module, so it stays thin: what a
configured cluster needs is imported when one is configured, and lives in `pytest_ipvs.active`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_ipvs import settings as _settings

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from pytest_ipvs.active import Active
    from pytest_ipvs.checker import Checker
    from pytest_ipvs.cluster.cluster import Cluster
    from pytest_ipvs.cluster.handle import NodeHandle
    from pytest_ipvs.policy import Policy
    from pytest_ipvs.rollout import Rollout, Workload
    from pytest_ipvs.session import IpvsSession
    from pytest_ipvs.traffic import Results

ACTIVE = "ipvs-active"
# Options of pytest that print something and run no test.
ONLY_INFORM = ("help", "version", "markers", "showfixtures", "show_fixtures_per_test")
MARKERS = (
    "ipvs_nodes(role, selector, names, kernel): choose the nodes of ipvs_node and ipvs_nodes",
    "ipvs_requires(mode, kubernetes, kube_proxy, kernel, affinity, nodes): skip where they differ",
    "ipvs_sysctl(values): assert sysctls on the test's nodes before its body runs",
    "ipvs_disruptive: needs --ipvs-allow-disruption",
    "ipvs_phase(name): the phase of an upgrade a test belongs to: before, during or after",
    "ipvs_check(id): the check of the catalogue that a test runs",
    "ipvs_group(name): the group of that check, so that -m \"ipvs_group(name='TB')\" selects",
)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_ipvs import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ipvs", "Kubernetes clusters in IPVS mode")
    for option in _settings.OPTIONS:
        group.addoption(option.flag, **option.addoption())
        parser.addini(**option.addini())
    group.addoption(
        "--ipvs-list-checks", action="store_true", help="List the checks of the catalogue and exit"
    )
    group.addoption(
        "--ipvs-explain", metavar="ID", help="Explain one check of the catalogue and exit"
    )
    group.addoption(
        "--ipvs-format",
        metavar="FORMAT",
        default="text",
        help="Format of --ipvs-list-checks and --ipvs-explain (one of text, json; default: text)",
    )
    group.addoption(
        "--ipvs-policy-init",
        action="store_true",
        help="Write a commented policy file from the cluster to --ipvs-policy, or ipvs.yaml, and "
        "exit",
    )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if config.option.ipvs_list_checks or config.option.ipvs_explain:
        from pytest_ipvs.report.catalogue import show

        return show(config.option.ipvs_explain, config.option.ipvs_format)
    if config.option.ipvs_policy_init:
        from pytest_ipvs.policy_init import main

        return main(config, _sources(config))
    return None


# Last, so that the terminal reporter is there to show how the lab boots.
@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    for line in MARKERS:
        config.addinivalue_line("markers", line)
    if any(getattr(config.option, name, False) for name in ONLY_INFORM):
        return
    sources = _sources(config)
    # A pytest-xdist worker is told what its controller found out.
    worker = getattr(config, "workerinput", {}).get("ipvs")
    if worker is not None or _settings.any_given(*sources):
        from pytest_ipvs.active import activate

        activate(config, sources, worker, ACTIVE)


def _sources(config: pytest.Config) -> tuple[dict[str, Any], Mapping[str, str], dict[str, Any]]:
    """Where settings may come from, in the order that `settings.resolve` takes."""
    ini = {option.ini: config.getini(option.ini) for option in _settings.OPTIONS}
    return vars(config.option), os.environ, ini


def pytest_unconfigure(config: pytest.Config) -> None:
    if (active := _active(config)) is not None:
        active.close()
        config.pluginmanager.unregister(active)


# A wrapper, so that nobody reads a marker's arguments before they are known to be right.
@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    """Refuse wrong marker arguments, with or without a cluster."""
    if any(mark.name[:5] == "ipvs_" for item in items for mark in item.iter_markers()):
        from pytest_ipvs.markers import refuse_wrong

        refuse_wrong(items, getattr(config, "workeroutput", None))
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Under pytest-xdist: refuse the markers that a worker found wrong."""
    if found := getattr(node, "workeroutput", {}).get("ipvs_refused"):
        raise pytest.UsageError(*found)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A marker that asks something of a cluster can't be ignored because there is none."""
    if _active(item.config) is None:
        if item.get_closest_marker("ipvs_disruptive"):
            pytest.skip("needs --ipvs-allow-disruption, and a cluster")
        for name in ("ipvs_requires", "ipvs_sysctl"):
            if item.get_closest_marker(name):
                _no_cluster(f"marker {name}")


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Explain tables and sysctls; by name, because most runs never import the classes."""
    names = {f"{type(side).__module__}.{type(side).__qualname__}" for side in (left, right)}
    if "pytest_ipvs.cluster.handle.SysctlValue" in names:
        from pytest_ipvs.assertions import explain_sysctl

        return explain_sysctl(op, left, right)
    if op == "==" and names == {"pytest_ipvs.ipvs.tables.Table"}:
        from pytest_ipvs.report.tables import explain_difference

        return explain_difference(left, right)  # type: ignore[arg-type]
    return None


def _active(config: pytest.Config) -> Active | None:
    return config.pluginmanager.get_plugin(ACTIVE)


def _no_cluster(what: str) -> NoReturn:
    pytest.fail(
        f"{what} needs a cluster: give --ipvs-kubeconfig, --ipvs-context, --ipvs-in-cluster "
        "or --ipvs-lab",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def _ipvs_session(request: pytest.FixtureRequest) -> IpvsSession:
    if (active := _active(request.config)) is None:
        _no_cluster("an ipvs fixture")
    return active.session


@pytest.fixture(scope="session")
def ipvs_cluster(_ipvs_session: IpvsSession) -> Cluster:
    """The cluster: nodes, services, endpoint slices, versions, tables and snapshots."""
    return _ipvs_session.open_cluster()


@pytest.fixture(scope="session")
def ipvs_api(ipvs_cluster: Cluster) -> ApiClient:
    """The kubernetes ApiClient for the chosen context, ready to use."""
    client: ApiClient = ipvs_cluster.api.client
    return client


@pytest.fixture(scope="session")
def ipvs_policy(_ipvs_session: IpvsSession) -> Policy:
    """The expectations and thresholds in force."""
    return _ipvs_session.policy


# Scope of a module, as testinfra's host has: pytest runs all tests of one value together, and of a
# session-wide value it would mix the tests of different modules.
@pytest.fixture(scope="module")
def ipvs_node(request: pytest.FixtureRequest, _ipvs_session: IpvsSession) -> NodeHandle:
    """One node; a test that asks for it runs once for each selected node."""
    return _ipvs_session.handles((request.param,))[0]


@pytest.fixture
def ipvs_nodes(
    request: pytest.FixtureRequest, _ipvs_session: IpvsSession
) -> tuple[NodeHandle, ...]:
    """All selected nodes in one test, sorted by name; an error where one did not answer."""
    return _ipvs_session.handles(_ipvs_session.selected(request.node))


@pytest.fixture
def ipvs_check(request: pytest.FixtureRequest, _ipvs_session: IpvsSession) -> Checker:
    """Run one check of the catalogue: ``ipvs_check("TB-01")`` or ``ipvs_check("DP-01", run)``.

    Fails with the findings, skips where it does not apply, and adds a row to the final table.
    """
    from pytest_ipvs.checker import Checker

    return Checker(_ipvs_session, request.node)


@pytest.fixture(scope="session")
def ipvs_rollout(_ipvs_session: IpvsSession) -> Callable[..., AbstractContextManager[Rollout]]:
    """A scripted disruption under traffic: ``with ipvs_rollout("ns/web") as run: run.restart()``.

    Takes a Deployment or what ``ipvs_workload`` made, and what `pytest_ipvs.rollout.Rollout`
    takes. A test that asks for it is disruptive.
    """
    return _ipvs_session.rollout


@pytest.fixture(scope="session")
def ipvs_traffic(_ipvs_session: IpvsSession) -> Callable[..., Results]:
    """Short connections without a rollout: ``ipvs_traffic("10.96.0.10", 80, seconds=10)``."""
    return _ipvs_session.traffic


@pytest.fixture(scope="session")
def ipvs_workload(_ipvs_session: IpvsSession) -> Iterator[Callable[..., Workload]]:
    """Make a throw-away Deployment and Service: ``ipvs_workload(replicas=3, affinity=True)``.

    Removed at the end of the session. A test that asks for it is disruptive.
    """
    yield _ipvs_session.workload
    _ipvs_session.remove_workloads()
