"""Host ports of pods, as the portmap plugin makes them: a chain behind kube-proxy's, with DNAT."""

from __future__ import annotations

from typing import Literal

from pytest_ipvs.lab.client import Object
from pytest_ipvs.lab.machine import LabError, Machine

SCRIPT = """
nat() { iptables -w -t nat "$@"; }
if nat -N CNI-HOSTPORT-DNAT 2>/dev/null; then
  nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
  nat -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
fi
change=$1
shift
# A container that is started again has its rule already.
if [ "$change" = -A ] && nat -C CNI-HOSTPORT-DNAT "$@" 2>/dev/null; then exit 0; fi
nat "$change" CNI-HOSTPORT-DNAT "$@"
"""


def change(
    machine: Machine, node: str, container: Object, address: str, option: Literal["-A", "-D"]
) -> None:
    """Add or delete the rules of a container's host ports; :class:`LabError` if none is added."""
    for port in container.get("ports") or []:
        if not port.get("hostPort"):
            continue
        rule = ["-p", port.get("protocol", "TCP").lower(), "--dport", str(port["hostPort"])]
        rule += ["-j", "DNAT", "--to-destination", f"{address}:{port['containerPort']}"]
        argv = ["sh", "-c", SCRIPT, "host-port", option, *rule]
        answer = machine.call("exec", node=node, argv=argv)
        if answer["rc"] and option == "-A":
            raise LabError(f"the host port of a pod on {node}: {answer['err'].strip()}")
