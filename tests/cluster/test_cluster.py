"""A whole cluster out of fakes: the API of a recorded moment, and that moment's node over ssh."""

import copy
import dataclasses
import json
import threading

import pytest
from cluster_fakes import Answer, ip_program, proxy_answers, state

import pytest_ipvs.cluster.facts
from pytest_ipvs.cluster import Cluster, ClusterError, FactsError, NodeUnreachableError
from pytest_ipvs.cluster.facts import Probe
from pytest_ipvs.ipvs.tables import parse_table
from pytest_ipvs.policy import Policy
from pytest_ipvs.settings import resolve

pytestmark = pytest.mark.system

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
# Puts the host's own folder in place of a word, then runs the command here.
FAKE_SSH = """#!/bin/bash
command="${{@: -1}}"; host="${{@: -2:1}}"
case $host in 192.168.50.12) echo "ssh: connect to host: No route to host" >&2; exit 255;; esac
exec sh -c "${{command//ROOTS/{roots}}}"
"""


class Lab:
    """A cluster of fakes that a test can change between two readings."""

    def __init__(self, recorded, serve, settings_for, node_root, programs, tmp_path):
        self.recorded = copy.deepcopy(recorded)
        self.root = node_root(self.recorded)
        self.table_path = self.root / "proc/net/ip_vs"
        self.table = self.table_path.read_text()
        self.extra = None
        self.server = serve(
            state(self.recorded, lambda *request: self.extra and self.extra(*request))
        )
        self.proxy = serve(proxy_answers(self.recorded)).port
        self.settings_for = settings_for
        programs("ip", ip_program(self.recorded))
        programs("ssh", FAKE_SSH.format(roots=str(tmp_path / "roots").replace("/", "\\/")))
        self.pauses = []
        self.made = []

    def cluster(self, policy=None, **values):
        values = {"connect": "ssh://root@{internal_ip}", "nodes": ["node-1"], **values}
        settings = self.settings_for(self.server.url, **values)
        cluster = Cluster(settings, policy)
        cluster.probe = Probe(root="ROOTS/node-1", metrics_port=self.proxy, health_port=self.proxy)
        cluster.pause = self.pauses.append
        self.made.append(cluster)
        return cluster

    def service(self, name):
        items = self.recorded["state"]["services"]["items"]
        return next(i for i in items if i["metadata"]["name"] == name)


@pytest.fixture
def lab(current, serve, settings_for, node_root, programs, tmp_path):
    lab = Lab(current, serve, settings_for, node_root, programs, tmp_path)
    yield lab
    for cluster in lab.made:
        cluster.close()


def test_a_snapshot_holds_the_whole_moment(lab):
    snapshot = lab.cluster().snapshot()
    assert snapshot.server_version == "v1.36.2"
    assert [node.name for node in snapshot.nodes] == ["node-1"]
    assert {s.ref for s in snapshot.services} >= {"demo/web", "default/kubernetes"}
    assert any(s.service == "web" for s in snapshot.endpoint_slices)
    assert snapshot.moving == frozenset()
    assert snapshot.unreachable == {}
    facts = snapshot.facts["node-1"]
    assert facts.unread == {}
    assert facts.table is not None


def test_requests_do_not_grow_with_nodes(lab):
    def lists():
        # Which list the server has is asked once per run.
        return sum(1 for _, _, query, _ in lab.server.requests if query.get("limit") == "500")

    one, all_three = lab.cluster(), lab.cluster(nodes=["node-1", "node-2", "node-3"])
    one.snapshot()
    for_one = lists()
    all_three.snapshot()
    assert lists() - for_one == for_one == 5


def test_details_come_with_the_first_snapshot_only(lab):
    cluster = lab.cluster()
    with_details, *_ = cluster.observe(details=True)
    assert with_details.facts["node-1"].details is not None
    assert with_details.proxy_objects is not None
    asked = [path for _, path, _, _ in lab.server.requests if "kube-system" in path]
    assert len(asked) == 3
    snapshot = cluster.snapshot()
    assert snapshot.facts["node-1"].details is None
    assert snapshot.proxy_objects is None
    handle = cluster.node("node-1")
    assert handle.details is handle.details
    assert handle.facts.details is None


def test_the_recorded_cluster_is_converged_at_once(lab):
    cluster = lab.cluster()
    assert cluster.converged()
    assert len(cluster.observe()) == 1
    assert lab.pauses == []


def test_the_recorded_old_cluster_too(oldest, serve, settings_for, node_root, programs, tmp_path):
    lab = Lab(oldest, serve, settings_for, node_root, programs, tmp_path)
    cluster = lab.cluster()
    try:
        snapshot = cluster.snapshot()
        assert snapshot.server_version == "v1.20.2"
        assert {s.service for s in snapshot.endpoint_slices} >= {"web", "kubernetes"}
        assert snapshot.facts["node-1"].proxy.version == "v1.20.2"
        assert snapshot.facts["node-1"].unread == {}
    finally:
        cluster.close()


def test_nodes_that_do_not_answer_are_named(lab):
    snapshot = lab.cluster(nodes=["node-1", "node-2"]).snapshot()
    assert snapshot.unreachable == {"node-2": "no route to host"}
    assert list(snapshot.facts) == ["node-1"]


def test_a_node_that_does_not_answer_is_not_converged(lab):
    cluster = lab.cluster(nodes=["node-1", "node-2"])
    assert not cluster.converged(timeout=0)
    with pytest.raises(NodeUnreachableError, match="node node-2 can't be reached: no route"):
        cluster.tables()


def test_tables(lab):
    tables = lab.cluster().tables()
    assert len(tables["node-1"].virtual_servers) > 5
    lab.table_path.unlink()
    assert lab.cluster().tables() == {"node-1": None}
    lab.table_path.mkdir()
    with pytest.raises(ClusterError, match=r"node node-1: table was not read: .*Is a directory"):
        lab.cluster().tables()


def test_what_changes_between_both_readings_is_moving(lab):
    readings = []

    def extra(method, path, query, body):
        if path == SERVICES:
            readings.append(path)
            changed = copy.deepcopy(lab.recorded["state"]["services"])
            for item in changed["items"]:
                if item["metadata"]["name"] == "web" and len(readings) == 2:
                    item["spec"]["sessionAffinity"] = "ClientIP"
                    item["metadata"]["resourceVersion"] = "999999"
            if len(readings) == 2:
                changed["items"] = [
                    i for i in changed["items"] if i["metadata"]["name"] != "web-udp"
                ]
            return Answer(200, changed)
        if path == SLICES and len(readings) == 2:
            changed = copy.deepcopy(lab.recorded["state"]["endpointslices"])
            for item in changed["items"]:
                if item["metadata"]["labels"].get("kubernetes.io/service-name") == "web-local":
                    item["endpoints"] = []
                    item["metadata"]["resourceVersion"] = "999999"
            return Answer(200, changed)
        return None

    cluster = lab.cluster()
    cluster.api.endpoint_slices_path()
    readings.clear()
    lab.extra = extra
    # Both lists of a reading are fetched at the same time; here one after the other.
    cluster._reader._executor = OneByOne()
    snapshot = cluster.snapshot()
    assert snapshot.moving == {"demo/web", "demo/web-udp", "demo/web-local"}
    # What was deleted meanwhile is still there to explain the table.
    assert "demo/web-udp" in {service.ref for service in snapshot.services}


class OneByOne:
    """An executor that works at once."""

    def submit(self, function):
        class Done:
            value = function()

            def result(self):
                return self.value

        return Done()

    def shutdown(self, **_):
        pass


def test_unchanged_objects_are_parsed_once(lab):
    cluster = lab.cluster()
    first, second = cluster.services, cluster.services
    assert all(one is other for one, other in zip(first, second, strict=True))


def stale(table):
    return table.replace("-> 0AF40105:1F90", "-> 0AF40199:1F90")


def test_observe_follows_a_difference_until_it_is_gone(lab):
    lab.table_path.write_text(stale(lab.table))
    cluster = without_processes(lab, lab.cluster())
    told = []

    def pause(seconds):
        lab.pauses.append(seconds)
        if len(lab.pauses) == 3:
            lab.table_path.write_text(lab.table)

    cluster.pause = pause
    snapshots = cluster.observe(progress=told.append)
    assert len(snapshots) == 4
    assert lab.pauses == sorted(lab.pauses)
    assert lab.pauses[-1] > lab.pauses[0]
    assert len(told) == 3
    assert "stale" in told[0]
    assert "missing" in told[0]


def test_observe_stops_when_a_difference_outlasts_its_budget(lab, monkeypatch):
    lab.table_path.write_text(stale(lab.table))
    clock = Clock(monkeypatch)
    cluster = without_processes(lab, lab.cluster(converge_timeout="8"))
    cluster.pause = clock.advance
    snapshots = cluster.observe()
    spent = snapshots[-1].taken_at - snapshots[0].taken_at
    # Long enough to decide, without going on after that.
    assert 8 <= spent < 19
    assert not cluster.converged(timeout=0)


def test_observe_follows_weight_zero_up_to_the_drain_budget(lab, monkeypatch):
    lines, protocol = [], ""
    for line in lab.table.splitlines():
        lines.append(line)
        protocol = protocol if line.startswith(" ") else line[:3]
        # UDP never drains.
        if "-> 0AF40105:1F90" in line and protocol == "TCP":
            lines.append("  -> 0AF40199:1F90      Masq    0      3          4")
    lab.table_path.write_text("\n".join(lines) + "\n")
    clock = Clock(monkeypatch)
    cluster = without_processes(lab, lab.cluster(drain_budget="30"))
    cluster.pause = clock.advance
    snapshots = cluster.observe()
    assert 30 <= snapshots[-1].taken_at - snapshots[0].taken_at < 42
    # Draining is no reason to wait for those who don't ask for it.
    assert len(cluster.observe(drain=False)) == 1
    assert cluster.converged(timeout=0)


def test_observe_ends_in_a_cluster_that_never_rests(lab, monkeypatch):
    clock = Clock(monkeypatch)
    cluster = without_processes(lab, lab.cluster(converge_timeout="4", drain_budget="10"))
    number = iter(range(0x10, 0xFF))

    def pause(seconds):
        clock.advance(seconds)
        lab.table_path.write_text(
            lab.table.replace("-> 0AF40105:1F90", f"-> 0AF401{next(number):02X}:1F90")
        )

    pause(0)
    cluster.pause = pause
    snapshots = cluster.observe()
    assert snapshots[-1].taken_at - snapshots[0].taken_at < 2 * 4 + 10 + 11


def test_observe_does_not_wait_an_hour_for_a_release_that_resyncs_hourly(lab, monkeypatch):
    metrics = lab.recorded["proxy"][":10249/metrics"]
    metrics["body"] = metrics["body"].replace("v1.36.2", "v1.34.1")
    lab.table_path.write_text(stale(lab.table))
    clock = Clock(monkeypatch)
    cluster = without_processes(lab, lab.cluster(converge_timeout="8"))
    cluster.pause = clock.advance
    snapshots = cluster.observe()
    assert snapshots[-1].facts["node-1"].proxy.version == "v1.34.1"
    assert 8 <= snapshots[-1].taken_at - snapshots[0].taken_at < 19


def test_observe_s_own_timeout_ends_it_earlier(lab, monkeypatch):
    lab.table_path.write_text(stale(lab.table))
    clock = Clock(monkeypatch)
    cluster = without_processes(lab, lab.cluster())
    cluster.pause = clock.advance
    snapshots = cluster.observe(timeout=5)
    assert snapshots[-1].taken_at - snapshots[0].taken_at <= 5


def without_processes(lab, cluster):
    """Let a cluster read the table's file itself: a script's run per reading would be slow."""
    once = cluster._facts("node-1")

    def facts(name):
        now = pytest_ipvs.cluster.facts.time.time()
        table = parse_table(lab.table_path.read_text())
        return dataclasses.replace(once, node=name, table=table, taken_at=now)

    cluster._facts = facts
    return cluster


class Clock:
    """The time that the cluster's code sees: moves only when it pauses."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("pytest_ipvs.cluster.cluster.time", self)
        monkeypatch.setattr("pytest_ipvs.cluster.facts.time", self)

    def advance(self, seconds):
        self.now += seconds

    def time(self):
        return self.now

    monotonic = time
    sleep = advance


def test_foreign_virtual_servers_are_not_waited_for(lab):
    lab.table_path.write_text(lab.table + "TCP  C0A80A0A:0050 wlc  \n")
    policy = Policy(foreign_virtual_servers=("192.168.10.0/24",))
    assert len(lab.cluster(policy).observe()) == 1


def test_check_access_reads_no_node(lab, tmp_path):
    cluster = lab.cluster(nodes=["node-2"])
    cluster.check_access()
    assert [node.name for node in cluster.nodes] == ["node-2"]


def test_check_access_tells_what_is_forbidden(lab, current):
    refusal = next(a["body"] for a in current["answers"] if a["name"].startswith("060"))
    lab.extra = lambda method, path, query, body: Answer(403, refusal) if path == SLICES else None
    with pytest.raises(
        ClusterError, match="user viewer may not list endpointslices at the cluster"
    ):
        lab.cluster().check_access()


def test_unknown_nodes_and_selectors_are_one_sentence(lab):
    with pytest.raises(ClusterError) as error:
        lab.cluster(nodes=["node-9"]).check_access()
    assert str(error.value) == (
        "--ipvs-nodes has 'node-9', which is not in the cluster, "
        "expected one of node-1, node-2, node-3"
    )

    def extra(method, path, query, body):
        if query.get("labelSelector") == "a==b==c":
            return Answer(400, {"message": "unable to parse requirement"})
        if query.get("labelSelector"):
            return Answer(200, {"metadata": {}, "items": []})
        return None

    lab.extra = extra
    with pytest.raises(
        ClusterError, match=r"^--ipvs-node-selector is 'a==b==c', expected a label sel"
    ):
        lab.cluster(node_selector="a==b==c", nodes=None).check_access()
    with pytest.raises(ClusterError, match=r"has no node that matches 'x=y' to test$"):
        lab.cluster(node_selector="x=y", nodes=None).check_access()


def test_windows_nodes_are_left_out_unless_named(lab):
    nodes = lab.recorded["state"]["nodes"]["items"]
    nodes[2]["metadata"]["labels"]["kubernetes.io/os"] = "windows"
    assert [n.name for n in lab.cluster(nodes=None).nodes] == ["node-1", "node-2"]
    assert [n.name for n in lab.cluster(nodes=["node-3"]).nodes] == ["node-3"]


def test_a_bad_template_is_found_before_anything_is_connected(kubeconfig):
    settings = resolve({"ipvs_kubeconfig": "/no/such", "ipvs_connect": "ssh://{nmae}"}, {}, {}, {})
    with pytest.raises(ClusterError, match=r"but \{nmae\} is not known"):
        Cluster(settings)


def test_versions(lab):
    versions = lab.cluster().versions
    assert versions.server == "v1.36.2"
    assert versions.kernel == {"node-1": "6.1.0-56-amd64"}


def test_a_node_in_the_hands_of_a_test(lab):
    node = lab.cluster().node("node-1")
    assert node.name == "node-1"
    assert node.sysctl["net.ipv4.vs.conntrack"] == "1"
    assert node.sysctl["net.ipv4.vs.conntrack"] == 1
    assert "net.ipv4.vs.conntrack" in node.sysctl
    assert node.kernel.release == "6.1.0-56-amd64"
    assert node.table is not None
    assert node.host.run("echo %s", "a b").stdout == "a b\n"
    assert node.node.internal_ips
    # Not in the script's list, so it is read from the node (this machine, in this test).
    assert node.sysctl["kernel.pid_max"].isdigit()
    for key in ("net.ipv4.vs.nonsense", "../../etc/passwd", "net..ipv4", ""):
        with pytest.raises(KeyError):
            node.sysctl[key]


def test_a_node_is_read_again_when_its_facts_are_old(lab, monkeypatch):
    node = lab.cluster().node("node-1")
    first = node.facts
    assert node.facts is first
    monkeypatch.setattr("pytest_ipvs.cluster.handle.MAX_AGE", -1.0)
    assert node.facts is not first
    monkeypatch.setattr("pytest_ipvs.cluster.handle.MAX_AGE", 3600.0)
    again = node.facts
    (lab.root / "proc/sys/net/ipv4/vs/conntrack").write_text("0\n")
    assert node.sysctl["net.ipv4.vs.conntrack"] == "1"
    assert node.refresh() is not again
    assert node.sysctl["net.ipv4.vs.conntrack"] == "0"


def test_a_table_that_was_not_read_is_an_error_not_none(lab):
    lab.table_path.write_text("nonsense\n")
    with pytest.raises(FactsError, match=r"node node-1: table was not read: IPVS table line 1"):
        _ = lab.cluster().node("node-1").table


def test_connections_are_filtered_on_the_node(lab, programs):
    seen = lab.root.parent / "grep.log"
    found = (
        "TCP 0AF40109 A02F 0A600A01 0050 0AF40207 1F90 TIME_WAIT     117\n"
        "TCP 0AF40109 0000 0A600A01 0050 0AF40207 1F90 NONE          117\n"
    )
    programs("grep", f'#!/bin/sh\nprintf "%s\\n" "$@" > {seen}\nprintf "%s" "{found}"\n')
    node = lab.cluster().node("node-1")
    connections = node.connections(virtual="10.96.10.1", virtual_port=80, client="10.244.1.9")
    assert [c.template for c in connections] == [False, True]
    assert connections[0].client_port == 41007
    assert connections[0].real == "10.244.2.7"
    arguments = seen.read_text().splitlines()
    assert arguments[-2] == "^[A-Z]+ +0AF40109 +[^ ]+ +0A600A01 +0050 +[^ ]+ +[^ ]+ +"
    node.connections(real="fd00::5")
    assert "fd00:0000:0000:0000:0000:0000:0000:0005" in seen.read_text()
    with pytest.raises(ClusterError, match="more than 1 connections match, filter closer"):
        node.connections(virtual_port=80, limit=1)
    with pytest.raises(ValueError, match="at least one filter"):
        node.connections()


def test_connections_without_ip_vs_are_an_error(lab):
    with pytest.raises(ClusterError, match=r"connections can't be read: .*No such file"):
        lab.cluster().node("node-1").connections(virtual_port=80)


def test_nothing_is_left_running(lab):
    cluster = lab.cluster()
    cluster.snapshot()
    before = {thread.name for thread in threading.enumerate()}
    assert any(name.startswith("ipvs-") for name in before)
    cluster.close()
    assert not any(t.name.startswith("ipvs-") for t in threading.enumerate())


def test_a_snapshot_survives_a_pickle(lab):
    import pickle

    snapshot = lab.cluster().snapshot()
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot
    assert dataclasses.replace(snapshot, facts={}).facts == {}
    assert json.dumps(snapshot.facts["node-1"].proxy.config)
