"""A node's effective kube-proxy configuration, and which source told it.

What belongs here: choosing among what was read. What doesn't: reading (`script`, `api`), the
meaning of a configuration (`ipvs.proxy`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.cluster.model import NodeFacts, ProxyObjects
from pytest_ipvs.cluster.proxy_command import ProxyCommand, parse_command

# EKS names its second ConfigMap so, and keeps a kubeconfig only in the first.
_CONFIG_MAPS = (
    "kube-system/kube-proxy-config",
    "kube-system/kube-proxy",
    "kube-system/kube-proxy-worker",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """A configuration in the spelling of kube-proxy's file, and where it was found.

    ``source`` is "/configz", "ConfigMap NAMESPACE/NAME" or "command line". Only the first has
    every default filled in; it alone proves what the running process uses. ``unknown`` names keys
    that are set, to a value that no source shows.
    """

    values: Mapping[str, Any]
    source: str
    unknown: frozenset[str] = frozenset()

    @property
    def running(self) -> bool:
        """Whether the running kube-proxy itself said it."""
        return self.source == "/configz"

    def get(self, path: str, default: Any = None) -> Any:
        """A value by its dotted path ("ipvs.syncPeriod"); ``default`` where the key is absent."""
        return value_at(self.values, path, default)


def value_at(values: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """A value by its dotted path; ``default`` where the key is absent."""
    at: Any = values
    for name in path.split("."):
        if not isinstance(at, Mapping) or name not in at:
            return default
        at = at[name]
    return at


def config_map(objects: ProxyObjects | None) -> tuple[str, Mapping[str, Any]] | None:
    """("namespace/name", configuration) of kube-proxy's ConfigMap, where the API has one."""
    maps = objects.config_maps if objects is not None else {}
    names = [name for name in _CONFIG_MAPS if name in maps] or sorted(maps)
    return (names[0], maps[names[0]]) if names else None


def command_of(
    node: str, objects: ProxyObjects | None, detailed: NodeFacts | None
) -> ProxyCommand | None:
    """The command line of a node's kube-proxy: that of its process, else that of its pod."""
    details = detailed.details if detailed is not None else None
    if details is not None and details.proxy_command:
        return parse_command(details.proxy_command)
    pods = objects.pods if objects is not None else ()
    command = next((pod.command for pod in pods if pod.node == node and pod.command), None)
    if command is None:
        return None
    # A pod may leave the program's name to its image.
    return parse_command(command) or parse_command(("kube-proxy", *command))


def image_version(node: str, objects: ProxyObjects | None) -> str | None:
    """The version in the tag of a node's kube-proxy image; ``None`` where there is none."""
    images = (pod.image for pod in (objects.pods if objects else ()) if pod.node == node)
    tags = (_TAG.search(image) for image in images)
    return next((tag[1] for tag in tags if tag), None)


_TAG = re.compile(r":(v?\d+\.\d+\.\d+[^@\s]*)(?:@|$)")


def effective_config(
    facts: NodeFacts, objects: ProxyObjects | None = None, detailed: NodeFacts | None = None
) -> ProxyConfig | None:
    """What a node's kube-proxy is configured to do, of the best source; ``None`` without one.

    ``/configz`` first. Then the ConfigMap, unless the command line names no file: then the
    command line is all there is. ``objects`` and ``detailed`` are what was read once per run.
    """
    if facts.proxy.config is not None:
        return ProxyConfig(values=facts.proxy.config, source="/configz")
    command = command_of(facts.node, objects, detailed)
    if command is not None and not command.config_file:
        return ProxyConfig(values=command.config, source="command line", unknown=command.unknown)
    found = config_map(objects)
    if found is None:
        return None
    name, values = found
    # A null stands for "not set": kubeadm writes it for every key.
    told = {key: _without_nulls(value) for key, value in values.items() if value is not None}
    if command is not None and command.config.get("hostnameOverride"):
        told["hostnameOverride"] = command.config["hostnameOverride"]
    return ProxyConfig(values=told, source=f"ConfigMap {name}")


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_nulls(one) for key, one in value.items() if one is not None}


def effective_mode(facts: NodeFacts, config: ProxyConfig | None) -> str | None:
    """The mode of a node's kube-proxy, of the best source; ``None`` where none tells.

    Its own ``/proxyMode`` first. A configuration without a mode decides nothing: the default may
    change with the version. That ip_vs is loaded never counts.
    """
    if facts.proxy.mode is not None:
        return facts.proxy.mode
    mode = config.get("mode") if config is not None else None
    return mode if isinstance(mode, str) and mode else None
