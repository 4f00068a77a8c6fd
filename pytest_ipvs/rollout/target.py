"""What is disrupted and how it is reached: a Deployment, its Service, the paths to read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.ipvs.objects import EndpointSlice, Service, ServicePort
from pytest_ipvs.ipvs.tables import RealServer, ServiceKey, Table
from pytest_ipvs.rollout.errors import RolloutError
from pytest_ipvs.rollout.protocols import ApiLike


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A Deployment with the Service port that traffic goes to. ``selector`` is a label query."""

    namespace: str
    name: str
    selector: str
    service: Service
    port: ServicePort
    address: str
    address_port: int

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def balancer(self) -> str:
        """The address that a load balancer gave the Service, "" without one."""
        return balancer_of(self.service)

    @property
    def path(self) -> str:
        """The Deployment's path."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.name}"

    @property
    def pods_path(self) -> str:
        """The path of the namespace's pods."""
        return f"/api/v1/namespaces/{self.namespace}/pods"

    @property
    def events_path(self) -> str:
        """The path of the namespace's events."""
        return f"/api/v1/namespaces/{self.namespace}/events"

    def pods(self, api: ApiLike) -> Iterator[dict[str, Any]]:
        """The Deployment's pods, by its selector."""
        return api.items(self.pods_path, labelSelector=self.selector)

    def slices_list(self, api: ApiLike) -> tuple[str, dict[str, str]]:
        """Path and query of the Service's slices, of whatever version the server has."""
        group, _, kind = api.endpoint_slices_path().rpartition("/")
        query = (
            {"fieldSelector": f"metadata.name={self.service.name}"}
            if kind == "endpoints"
            else {"labelSelector": f"kubernetes.io/service-name={self.service.name}"}
        )
        return f"{group}/namespaces/{self.namespace}/{kind}", query

    def slices_in(self, api: ApiLike, item: Mapping[str, Any]) -> tuple[EndpointSlice, ...]:
        """The Service's slices in one object of that list."""
        return tuple(part for part in api.slices_of(item) if part.service == self.service.name)

    def slices(self, api: ApiLike) -> Iterator[EndpointSlice]:
        """The Service's slices."""
        path, query = self.slices_list(api)
        for item in api.items(path, **query):
            yield from self.slices_in(api, item)

    def real_servers(self, table: Table) -> dict[ServiceKey, tuple[RealServer, ...]]:
        """The Service's virtual servers in a node's table, whichever way they are addressed."""
        service = self.service
        addresses = {*service.cluster_ips, *service.external_ips, *service.load_balancer_ips}
        ports = {port.port for port in service.ports}
        node_ports = {port.node_port for port in service.ports if port.node_port}
        return {
            server.key: server.real_servers
            for server in table.virtual_servers
            if (server.address in addresses and server.port in ports) or server.port in node_ports
        }


def find_target(
    api: ApiLike,
    target: str,
    *,
    service: str | None = None,
    port: int | str | None = None,
    via: str = "cluster-ip",
    node_address: str | None = None,
) -> Target:
    """Look up "namespace/deployment" and the Service in front of it.

    ``service`` names it where several select the same pods, ``port`` (number or name) the port.
    ``via``: "cluster-ip", "node-port" (on ``node_address``), "load-balancer" (the address in the
    Service's status), or "ADDRESS:PORT" as it is.
    """
    namespace, slash, name = target.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise RolloutError(f"the target is {target!r}, expected 'namespace/deployment'")
    deployment = _read(api, f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}", target)
    labels = deployment["spec"]["template"]["metadata"].get("labels") or {}
    found = _service(api, namespace, target, labels, service)
    chosen = _port(found, port)
    address, number = _address(found, chosen, via, node_address)
    return Target(
        namespace=namespace,
        name=name,
        selector=selector_text(deployment["spec"]["selector"]),
        service=found,
        port=chosen,
        address=address,
        address_port=number,
    )


def _read(api: ApiLike, path: str, target: str) -> dict[str, Any]:
    try:
        return api.get(path)
    except Exception as error:
        if getattr(error, "status", None) == 404:
            raise RolloutError(f"there is no Deployment {target!r} in the cluster") from None
        raise


def _service(
    api: ApiLike, namespace: str, target: str, labels: Mapping[str, str], wanted: str | None
) -> Service:
    services = [
        Service.from_api(item) for item in api.items(f"/api/v1/namespaces/{namespace}/services")
    ]
    if wanted is not None:
        for service in services:
            if service.name == wanted:
                return service
        raise RolloutError(f"there is no Service {wanted!r} in namespace {namespace!r}")
    fitting = [
        service
        for service in services
        if service.selector
        and service.selector.items() <= labels.items()
        and service.cluster_ips
        and any(port.protocol == "TCP" for port in service.ports)
    ]
    if not fitting:
        raise RolloutError(
            f"no Service with an address and a TCP port selects the pods of {target}, expected one"
        )
    if len(fitting) > 1:
        names = ", ".join(sorted(service.name for service in fitting))
        raise RolloutError(
            f"several Services select the pods of {target}: {names}; expected service=NAME"
        )
    return fitting[0]


def _port(service: Service, wanted: int | str | None) -> ServicePort:
    ports = [port for port in service.ports if port.protocol == "TCP"]
    if wanted is None and len(ports) == 1:
        return ports[0]
    for port in ports:
        if wanted is not None and wanted in (port.port, port.name):
            return port
    known = ", ".join(f"{port.port}" + (f" ({port.name})" if port.name else "") for port in ports)
    if wanted is None and ports:
        raise RolloutError(f"Service {service.ref} has the TCP ports {known}; expected port=ONE")
    raise RolloutError(
        f"Service {service.ref} has no TCP port {wanted!r}, expected one of {known or 'none'}"
    )


def _address(
    service: Service, port: ServicePort, via: str, node_address: str | None
) -> tuple[str, int]:
    if via == "cluster-ip":
        if not service.cluster_ips:
            raise RolloutError(f"Service {service.ref} has no cluster IP, expected another 'via'")
        return service.cluster_ips[0], port.port
    if via == "node-port":
        if port.node_port is None or node_address is None:
            raise RolloutError(f"Service {service.ref} has no node port, expected another 'via'")
        return node_address, port.node_port
    if via == "load-balancer":
        if not (found := balancer_of(service)):
            raise RolloutError(f"no load balancer gave Service {service.ref} an address")
        return found, port.port
    address, colon, number = via.rpartition(":")
    if not colon or not number.isdigit():
        raise RolloutError(
            f"via is {via!r}, expected cluster-ip, node-port, load-balancer or ADDRESS:PORT"
        )
    return address.strip("[]"), int(number)


def balancer_of(service: Service) -> str:
    """The first address of the load balancer in the Service's status, "" without one."""
    return next(iter((*service.load_balancer_ips, *service.proxied_ips)), "")


def selector_text(selector: Mapping[str, Any]) -> str:
    """A LabelSelector as the API's query text."""
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for rule in selector.get("matchExpressions") or ():
        key, operator = rule["key"], rule["operator"]
        values = ",".join(rule.get("values") or ())
        parts.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": key,
                "DoesNotExist": f"!{key}",
            }[operator]
        )
    return ",".join(parts)
