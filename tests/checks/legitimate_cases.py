"""The legitimate reasons why a table differs from the endpoint slices, each with a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_ipvs.policy import Policy

# "10.96.0.10:80" (TCP) or "UDP 10.96.0.53:53" to "ADDRESS[:PORT][=WEIGHT] …", port 8080, weight 1.
Servers = Mapping[str, str]
A, B = "10.244.1.2", "10.244.2.2"
VIP, OUTER = "10.96.0.10:80", "198.51.100.7:80"
TABLE_CHECKS = (
    *("KM-03", "TB-01", "TB-02", "TB-03", "TB-04", "TB-05", "TB-06", "TB-07", "TB-08"),
    *("TB-10", "TB-12", "PS-01", "PS-04"),
)
SET_CHECKS = ("TB-09", "TB-11")


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    metadata = {"namespace": "demo", "name": name, "labels": spec.pop("labels", {})}
    metadata["annotations"] = spec.pop("annotations", {})
    status = spec.pop("status", {})
    spec = {"clusterIP": "10.96.0.10", "ports": [{"port": 80}], **spec}
    return {"kind": "Service", "metadata": metadata, "spec": spec, "status": status}


def endpoint(address: str, **more: Any) -> dict[str, Any]:
    node = f"node-{address.split('.')[2]}" if "." in address else "node-2"
    return {"addresses": [address], "nodeName": node, **more}


LEAVES = {"conditions": {"ready": False, "serving": True, "terminating": True}}
NOT_READY = {"conditions": {"ready": False, "serving": False, "terminating": False}}


def slice_of(*endpoints: Any, of: str = "web", **more: Any) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": of, **more.pop("labels", {})}
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "demo",
            "name": more.pop("name", f"{of}-1"),
            "labels": labels,
        },
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [endpoint(one) if isinstance(one, str) else one for one in endpoints],
        **more,
    }


@dataclass(frozen=True, kw_only=True)
class Case:
    """A cluster of two nodes; what is not said is as plain as can be.

    ``table`` is node-2's, ``first`` node-1's where it differs, ``earlier`` node-2's in the first
    reading. ``version``, ``config`` and ``addresses`` (in addition to its own) are node-2's;
    ``late`` comes with the last reading only. kube-ipvs0 has the addresses of the table's virtual
    servers; ``members`` are in node-2's ipsets beside what must be there. ``lacks``: what is not
    measured. ``true``: checks that rightly tell something else about such a cluster.
    ``contrast``: what is different where it is wrong, ``trips``: the check that says so.
    """

    objects: tuple[Mapping[str, Any], ...] = (service(), slice_of(A, B))
    table: Servers = field(default_factory=lambda: {VIP: f"{A} {B}"})
    first: Servers | None = None
    earlier: Servers | None = None
    version: str = "v1.36.2"
    config: Mapping[str, Any] = field(default_factory=dict)
    addresses: tuple[tuple[str, str], ...] = ()
    late: tuple[tuple[str, str], ...] = ()
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)
    zones: bool = False
    moving: frozenset[str] = frozenset()
    times: tuple[float, ...] = (0.0, 300.0)
    policy: Policy = field(default_factory=Policy)
    lacks: Mapping[str, str] = field(default_factory=dict)
    true: frozenset[str] = frozenset()
    contrast: Mapping[str, Any]
    trips: str


LOCAL = service(externalIPs=["198.51.100.7"], externalTrafficPolicy="Local")
NODE_PORT = service(ports=[{"port": 80, "nodePort": 30080}], type="NodePort")
DOCKER = ("docker0", "172.17.0.1")
FLOATING = ("eth0", "192.0.2.200")
BOTH = f"{A} {B}"


def balancer(mode: str) -> dict[str, Any]:
    ingress = [{"ip": "198.51.100.8", "ipMode": mode}]
    return service(type="LoadBalancer", status={"loadBalancer": {"ingress": ingress}})


def hinted(address: str, zone: str) -> dict[str, Any]:
    return endpoint(address, hints={"forZones": [{"name": zone}]})


def other_ports(number: int) -> list[dict[str, Any]]:
    names = {"TCP": "t", "UDP": "u", "SCTP": "s"}
    return [{"name": n, "protocol": p, "port": number} for p, n in names.items()]


LATER = "a later reading"
OTHERS = (
    service(
        "other-proxy",
        clusterIP="10.96.0.11",
        labels={"service.kubernetes.io/service-proxy-name": "x"},
    ),
    service("headless", clusterIP="None"),
    service("name", clusterIP="", type="ExternalName"),
    *(slice_of(A, of=name) for name in ("other-proxy", "headless", "name")),
)
CASES: dict[str, Case] = {
    "01-draining": Case(
        table={VIP: f"{BOTH} 10.244.9.9=0"},
        first={VIP: BOTH},
        times=(0.0, 100.0),
        lacks={"TB-04": LATER},
        contrast={"times": (0.0, 300.0)},
        trips="TB-04",
    ),
    "02-serving-while-terminating": Case(
        objects=(service(), slice_of(endpoint(B, **LEAVES))),
        table={VIP: B},
        contrast={
            "objects": (service(), slice_of(A, endpoint(B, **LEAVES))),
            "table": {VIP: BOTH},
            "first": {VIP: A},
        },
        trips="TB-03",
    ),
    "03-not-ready": Case(
        objects=(service(), slice_of(A, endpoint(B, **NOT_READY))),
        table={VIP: A},
        contrast={"table": {VIP: BOTH}, "first": {VIP: A}},
        trips="TB-03",
    ),
    "04-local-by-virtual-server": Case(
        objects=(LOCAL, slice_of(A, B)),
        table={VIP: BOTH, OUTER: B},
        first={VIP: BOTH, OUTER: A},
        contrast={"table": {VIP: BOTH, OUTER: BOTH}},
        trips="TB-08",
    ),
    "05-fallback-of-an-empty-local-set": Case(
        objects=(LOCAL, slice_of(A)),
        table={VIP: A, OUTER: A},
        contrast={"table": {VIP: A, OUTER: ""}, "first": {VIP: A, OUTER: A}},
        trips="TB-08",
    ),
    "05-either-where-no-source-decides": Case(
        objects=(LOCAL, slice_of(A)),
        table={VIP: A, OUTER: ""},
        first={VIP: A, OUTER: A},
        version="v1.25.0",
        true=frozenset({"KP-06"}),
        contrast={"version": "v1.23.0", "table": {VIP: A, OUTER: A}},
        trips="TB-08",
    ),
    "06-zone-hints": Case(
        objects=(service(), slice_of(hinted(A, "z1"), hinted(B, "z2"))),
        zones=True,
        table={VIP: B},
        first={VIP: A},
        contrast={"table": {VIP: BOTH}},
        trips="TB-03",
    ),
    "06-topology-keys": Case(
        objects=(service(topologyKeys=["kubernetes.io/hostname"]), slice_of(A, B)),
        table={VIP: B},
        first={VIP: BOTH},
        version="v1.20.2",
        true=frozenset({"KP-06"}),
        contrast={"version": "v1.22.0"},
        trips="TB-02",
    ),
    "07-families": Case(
        objects=(
            service(clusterIPs=["10.96.0.10", "fd96::10"]),
            slice_of(A),
            slice_of(endpoint("fd44::2"), name="web-6", addressType="IPv6"),
        ),
        table={VIP: A, "[fd96::10]:80": "[fd44::2]:8080"},
        contrast={
            "table": {VIP: A},
            "first": {VIP: A, "[fd96::10]:80": "[fd44::2]:8080"},
        },
        trips="TB-01",
    ),
    "08-of-other-proxies-headless-or-a-name": Case(
        objects=(service(), slice_of(A, B), *OTHERS),
        contrast={"table": {VIP: BOTH, "10.96.0.11:80": A}, "first": {VIP: BOTH}},
        trips="TB-01",
    ),
    "09-load-balancer-in-proxy-mode": Case(
        objects=(balancer("Proxy"), slice_of(A, B)),
        contrast={
            "objects": (balancer("VIP"), slice_of(A, B)),
            "first": {VIP: BOTH, "198.51.100.8:80": BOTH},
        },
        trips="TB-01",
    ),
    "09-a-kube-proxy-that-knows-no-mode": Case(
        objects=(balancer("Proxy"), slice_of(A, B)),
        table={VIP: BOTH, "198.51.100.8:80": BOTH},
        first={VIP: BOTH},
        members={"KUBE-LOAD-BALANCER": frozenset({"198.51.100.8,tcp:80"})},
        version="v1.28.0",
        true=frozenset({"KP-06"}),
        contrast={"version": "v1.32.0"},
        trips="TB-01",
    ),
    "10-external-addresses-off": Case(
        objects=(service(externalIPs=["198.51.100.7"]), slice_of(A, B)),
        first={VIP: BOTH, OUTER: BOTH},
        config={"featureGates": {"AllowServiceExternalIPs": False}},
        contrast={"config": {}},
        trips="TB-01",
    ),
    "11-every-address-of-the-node": Case(
        objects=(NODE_PORT, slice_of(A, B)),
        addresses=(DOCKER, FLOATING),
        first={VIP: BOTH, "192.0.2.1:30080": BOTH},
        table={
            VIP: BOTH,
            **{f"{ip}:30080": BOTH for ip in ("192.0.2.2", "172.17.0.1", "192.0.2.200")},
        },
        contrast={"table": {VIP: BOTH, "192.0.2.2:30080": BOTH, "172.17.0.1:30080": BOTH}},
        trips="TB-10",
    ),
    "11-the-primary-address": Case(
        objects=(NODE_PORT, slice_of(A, B)),
        addresses=(DOCKER, FLOATING),
        first={VIP: BOTH, "192.0.2.1:30080": BOTH},
        table={VIP: BOTH, "192.0.2.2:30080": BOTH},
        config={"nodePortAddresses": ["primary"]},
        contrast={"table": {VIP: BOTH, "192.0.2.2:30080": BOTH, "172.17.0.1:30080": BOTH}},
        trips="TB-10",
    ),
    "11-selected-networks": Case(
        objects=(NODE_PORT, slice_of(A, B)),
        addresses=(DOCKER,),
        first={VIP: BOTH, "192.0.2.1:30080": BOTH},
        table={VIP: BOTH, "172.17.0.1:30080": BOTH},
        config={"nodePortAddresses": ["172.16.0.0/12"]},
        contrast={"config": {}},
        trips="TB-10",
    ),
    "11-an-address-added-later": Case(
        objects=(NODE_PORT, slice_of(A, B)),
        late=(FLOATING,),
        first={VIP: BOTH, "192.0.2.1:30080": BOTH},
        table={VIP: BOTH, "192.0.2.2:30080": BOTH},
        lacks={"TB-10": LATER},
        contrast={"addresses": (FLOATING,)},
        trips="TB-10",
    ),
    "12-excluded-networks": Case(
        table={VIP: BOTH, "10.0.0.5:443": "192.0.2.1:6443 192.0.2.2:6443"},
        first={VIP: BOTH},
        config={"ipvs": {"excludeCIDRs": ["10.0.0.0/24"]}},
        contrast={"config": {}},
        trips="TB-01",
    ),
    "12-named-by-the-policy": Case(
        table={VIP: BOTH, "10.0.0.5:443": "192.0.2.1:6443 192.0.2.2:6443"},
        first={VIP: BOTH},
        policy=Policy(foreign_virtual_servers=("10.0.0.5:443/TCP",)),
        contrast={"policy": Policy(foreign_virtual_servers=("10.0.0.5:444/TCP",))},
        trips="TB-01",
    ),
    "13-the-probe": Case(
        table={VIP: BOTH, "198.51.100.0:20000": ""},
        first={VIP: BOTH},
        contrast={"table": {VIP: BOTH, "198.51.100.1:20000": ""}},
        trips="TB-01",
    ),
    "14-no-endpoints": Case(
        objects=(service(), slice_of()),
        table={VIP: ""},
        contrast={"objects": (service(), slice_of(A)), "first": {VIP: A}},
        trips="TB-12",
    ),
    "15-published-before-ready": Case(
        objects=(
            service(publishNotReadyAddresses=True),
            slice_of(A, endpoint(B, conditions={"ready": True, "serving": False})),
        ),
        contrast={"table": {VIP: A}, "first": {VIP: BOTH}},
        trips="TB-02",
    ),
    "16-slices-without-a-node": Case(
        objects=(
            service(internalTrafficPolicy="Local"),
            slice_of({"addresses": [B]}, labels={"endpointslice.kubernetes.io/managed-by": "me"}),
        ),
        table={VIP: ""},
        contrast={"table": {VIP: B}, "first": {VIP: ""}},
        trips="TB-08",
    ),
    "17-mirrored-endpoints": Case(
        objects=(
            service(),
            slice_of(
                {"addresses": ["192.0.2.77"], "conditions": {"ready": True}},
                labels={
                    "endpointslice.kubernetes.io/managed-by": (
                        "endpointslicemirroring-controller.k8s.io"
                    )
                },
            ),
        ),
        table={VIP: "192.0.2.77"},
        contrast={"table": {VIP: ""}, "first": {VIP: "192.0.2.77"}},
        trips="TB-12",
    ),
    "18-several-slices-and-twins": Case(
        objects=(
            service(),
            slice_of(A, endpoint(B, **LEAVES)),
            slice_of(B, A, name="web-2"),
        ),
        contrast={"table": {VIP: A}, "first": {VIP: BOTH}},
        trips="TB-02",
    ),
    "18-a-twin-that-does-not-terminate-wins": Case(
        objects=(
            service(),
            slice_of(endpoint(B, **LEAVES)),
            slice_of(endpoint(B, **NOT_READY), name="web-2"),
        ),
        table={VIP: ""},
        contrast={"table": {VIP: B}, "first": {VIP: ""}},
        trips="TB-03",
    ),
    "18-either-twin-before-1.36": Case(
        objects=(
            service(),
            slice_of(endpoint(B, **LEAVES)),
            slice_of(endpoint(B, **NOT_READY), name="web-2"),
        ),
        table={VIP: B},
        first={VIP: ""},
        version="v1.35.2",
        true=frozenset({"KP-06"}),
        contrast={"version": "v1.36.0"},
        trips="TB-03",
    ),
    "19-one-endpoint-behind-two-services": Case(
        objects=(
            service(),
            service("api", clusterIP="10.96.0.11"),
            slice_of(A, B),
            slice_of(A, of="api"),
        ),
        table={VIP: BOTH, "10.96.0.11:80": A},
        contrast={
            "table": {VIP: B, "10.96.0.11:80": A},
            "first": {VIP: BOTH, "10.96.0.11:80": A},
        },
        trips="TB-02",
    ),
    "20-a-resync-once-an-hour": Case(
        table={VIP: f"{BOTH} 10.244.9.9"},
        first={VIP: BOTH},
        version="v1.34.1",
        true=frozenset({"KP-06"}),
        lacks={"TB-03": LATER},
        contrast={"version": "v1.34.4"},
        trips="TB-03",
    ),
    "21-a-late-informer": Case(
        table={VIP: A},
        first={VIP: BOTH},
        times=(0.0, 30.0),
        lacks={"TB-02": LATER},
        contrast={"times": (0.0, 60.0)},
        trips="TB-02",
    ),
    "22-another-version-on-one-node": Case(
        objects=(LOCAL, slice_of(A)),
        table={VIP: A, OUTER: ""},
        first={VIP: A, OUTER: A},
        version="v1.23.1",
        true=frozenset({"KP-06"}),
        contrast={"version": "v1.36.2"},
        trips="TB-08",
    ),
    "23-another-network-namespace": Case(
        table={},
        first={VIP: BOTH},
        lacks=dict.fromkeys(TABLE_CHECKS, "table"),
        # There is no device in such a namespace either, and no set.
        true=frozenset(SET_CHECKS),
        contrast={"addresses": (("kube-ipvs0", "10.96.0.10"),)},
        trips="TB-01",
    ),
    "24-objects-change-while-tables-are-read": Case(
        table={VIP: A},
        first={VIP: BOTH},
        moving=frozenset({"demo/web"}),
        lacks={"TB-02": LATER},
        contrast={"moving": frozenset({"demo/api"})},
        trips="TB-02",
    ),
    "25-hostname-override": Case(
        objects=(LOCAL, slice_of(A, B)),
        table={VIP: BOTH, OUTER: BOTH},
        first={VIP: BOTH, OUTER: A},
        config={"hostnameOverride": "Worker-Two"},
        contrast={"config": {}},
        trips="TB-08",
    ),
    "25-hostname-override-has-no-zone": Case(
        objects=(service(), slice_of(hinted(A, "z1"), hinted(B, "z2"))),
        zones=True,
        table={VIP: BOTH},
        first={VIP: A},
        config={"hostnameOverride": "Worker-Two"},
        contrast={"config": {}},
        trips="TB-03",
    ),
    "26-a-node-that-just-joined": Case(
        earlier={},
        lacks={"TB-09": LATER},
        contrast={
            "earlier": {"10.96.9.9:80": ""},
            "table": {"10.96.9.9:80": ""},
            "first": {VIP: BOTH},
        },
        trips="TB-01",
    ),
    "27-a-named-port-with-two-numbers": Case(
        objects=(
            service(ports=[{"name": "http", "port": 80, "targetPort": "web"}]),
            slice_of(A, ports=[{"name": "http", "port": 8080}]),
            slice_of(B, name="web-2", ports=[{"name": "http", "port": 9090}]),
        ),
        table={VIP: f"{A} {B}:9090"},
        contrast={"table": {VIP: f"{A} {B}:9090 {B}"}, "first": {VIP: f"{A} {B}:9090"}},
        trips="TB-03",
    ),
    "28-protocol-keys": Case(
        objects=(
            service(ports=other_ports(53)),
            slice_of(A, ports=other_ports(53)),
        ),
        table={f"{p} 10.96.0.10:53": f"{A}:53" for p in ("TCP", "UDP", "SCTP")},
        contrast={
            "table": {f"{p} 10.96.0.10:53": f"{A}:53" for p in ("TCP", "SCTP")},
            "first": {f"{p} 10.96.0.10:53": f"{A}:53" for p in ("TCP", "UDP", "SCTP")},
        },
        trips="TB-01",
    ),
}
