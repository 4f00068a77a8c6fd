"""Addresses and node ports of Services: who has which, handing out, refusing what is taken."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable
from typing import Any

from pytest_ipvs.lab.api.errors import FieldError

Json = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The lowest addresses and ports are left for those who ask for one by name (KEP-3070, KEP-3668).
_STATIC_ADDRESSES = 256
_STATIC_PORTS = 86
NODE_PORTS = range(30000, 32768)


class ServiceAllocator:
    """Hands out cluster IPs of one range and node ports; who has what is read from the Services.

    ``cidr``: the range, such as "10.96.0.0/16"; its first address is the API server's own.
    """

    def __init__(self, cidr: str, *, minor: int) -> None:
        self._network: Network = ipaddress.ip_network(cidr)
        self._minor = minor
        self._random = random.SystemRandom()

    @property
    def family(self) -> str:
        """ "IPv4" or "IPv6"."""
        return f"IPv{self._network.version}"

    def allocate(self, new: Json, old: Json | None, others: Iterable[Json]) -> list[FieldError]:
        """Complete ``new`` in place with addresses and ports; answers what is refused.

        ``old`` is the Service before an update; ``others`` are all other Services.
        """
        taken = [service.get("spec") or {} for service in others]
        if old is not None:
            _follow_type(new["spec"], old["spec"])
        errors = self._addresses(new, old, taken)
        errors.extend(self._ports(new["spec"], taken))
        return errors

    def _addresses(self, new: Json, old: Json | None, others: list[Json]) -> list[FieldError]:
        spec = new["spec"]
        if spec["type"] == "ExternalName":
            for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(name, None)
            return []
        if old is not None and (error := self._keep(spec, old["spec"])) is not None:
            return [error]
        wanted = spec.get("clusterIP") or next(iter(spec.get("clusterIPs") or []), "")
        if self._minor >= 22:
            spec.setdefault("ipFamilies", [self.family])
            spec.setdefault("ipFamilyPolicy", "SingleStack")
        if wanted == "None":
            spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
            return []
        used = {other.get("clusterIP") for other in others}
        if not wanted:
            wanted = self._free_address(used)
        elif old is None or old["spec"].get("clusterIP") != wanted:
            reason = self._refused(wanted, used)
            if reason:
                if self._minor >= 26:
                    detail = f"failed to allocate IP {wanted}: {reason}"
                else:
                    detail = f"failed to allocated ip:{wanted} with error:{reason}"
                return [_invalid("spec.clusterIPs", [wanted], detail, "[]string")]
        spec["clusterIP"], spec["clusterIPs"] = wanted, [wanted]
        return []

    def _keep(self, spec: Json, old: Json) -> FieldError | None:
        """An update that leaves the address out keeps it; it may not change it."""
        had = old.get("clusterIP")
        if not had or old.get("type") == "ExternalName":
            return None
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if not spec.get(name) and old.get(name):
                spec[name] = old[name]
        if spec["clusterIP"] != had:
            detail = "may not change once set"
            return _invalid("spec.clusterIPs[0]", spec["clusterIP"], detail)
        return None

    def _refused(self, address: str, used: set[object]) -> str:
        try:
            inside = ipaddress.ip_address(address) in self._network
        except ValueError:
            inside = False
        if not inside:
            return (
                f"the provided IP ({address}) is not in the valid range. The range of valid "
                f"IPs is {self._network}"
            )
        return "provided IP is already allocated" if address in used else ""

    def _free_address(self, used: set[object]) -> str:
        size = self._network.num_addresses
        first = min(_STATIC_ADDRESSES, max(size // 16, 2))
        for _ in range(64):
            address = str(self._network[self._random.randrange(first, size - 1)])
            if address not in used:
                return address
        # A crowded range: take the first free one.
        return next(
            address
            for address in (str(self._network[index]) for index in range(2, size - 1))
            if address not in used
        )

    def _ports(self, spec: Json, others: list[Json]) -> list[FieldError]:
        used = {
            (port["nodePort"], port.get("protocol"))
            for other in others
            for port in other.get("ports") or []
            if port.get("nodePort")
        }
        health = {other.get("healthCheckNodePort") for other in others} - {None}
        errors: list[FieldError] = []
        with_ports = spec["type"] == "NodePort" or (
            spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts", True)
        )
        for index, port in enumerate(spec.get("ports") or []):
            wanted = port.get("nodePort")
            key = (wanted, port.get("protocol"))
            field = f"spec.ports[{index}].nodePort"
            if wanted:
                if wanted not in NODE_PORTS:
                    detail = (
                        "provided port is not in the valid range. The range of valid ports "
                        f"is {NODE_PORTS[0]}-{NODE_PORTS[-1]}"
                    )
                    errors.append(_invalid(field, wanted, detail))
                elif key in used or wanted in health:
                    errors.append(_invalid(field, wanted, "provided port is already allocated"))
            elif with_ports:
                port["nodePort"] = self._free_port({number for number, _ in used} | health)
            if port.get("nodePort"):
                used.add((port["nodePort"], port.get("protocol")))
        local = spec.get("externalTrafficPolicy") == "Local"
        if spec["type"] == "LoadBalancer" and local and not spec.get("healthCheckNodePort"):
            spec["healthCheckNodePort"] = self._free_port({number for number, _ in used} | health)
        return errors

    def _free_port(self, used: set[Any]) -> int:
        free = [port for port in NODE_PORTS[_STATIC_PORTS:] if port not in used]
        return self._random.choice(free or [port for port in NODE_PORTS if port not in used])


def _invalid(field: str, value: object, detail: str, go_type: str = "") -> FieldError:
    return FieldError(
        type="FieldValueInvalid", field=field, value=value, detail=detail, go_type=go_type
    )


def _follow_type(spec: Json, old: Json) -> None:
    """Keep node ports that an update leaves out; drop what the new type has no use for."""
    external = spec["type"] in {"NodePort", "LoadBalancer"}
    was_external = old.get("type") in {"NodePort", "LoadBalancer"}
    if external and was_external:
        had = {(port.get("port"), port.get("protocol")): port for port in old.get("ports") or []}
        for port in spec.get("ports") or []:
            before = had.get((port.get("port"), port.get("protocol")), {})
            if not port.get("nodePort") and before.get("nodePort"):
                port["nodePort"] = before["nodePort"]
    elif was_external and not external:
        had_ports = {port.get("nodePort") for port in old.get("ports") or []}
        for port in spec.get("ports") or []:
            if port.get("nodePort") in had_ports:
                port.pop("nodePort", None)
        if not spec.get("externalIPs"):
            spec.pop("externalTrafficPolicy", None)
    if spec["type"] != "LoadBalancer":
        spec.pop("allocateLoadBalancerNodePorts", None)
        spec.pop("healthCheckNodePort", None)
    elif old.get("healthCheckNodePort") and spec.get("externalTrafficPolicy") == "Local":
        spec.setdefault("healthCheckNodePort", old["healthCheckNodePort"])
