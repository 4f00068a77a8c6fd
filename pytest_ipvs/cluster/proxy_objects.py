"""What the API holds about kube-proxy: its configuration's ConfigMap and its pods."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pytest_ipvs.cluster.api import Api
from pytest_ipvs.cluster.errors import ApiError
from pytest_ipvs.cluster.model import ProxyObjects, ProxyPod
from pytest_ipvs.cluster.yaml_text import YamlError, read_yaml
from pytest_ipvs.ipvs._fields import Fields

_NAMESPACE = "kube-system"
# ConfigMap and the key of its configuration: kubeadm's, EKS's. EKS has the first one too, where
# it holds a kubeconfig only.
_CONFIG_MAPS = (("kube-proxy", "config.conf"), ("kube-proxy-config", "config"))
_PODS = f"/api/v1/namespaces/{_NAMESPACE}/pods"
_SELECTOR = "k8s-app=kube-proxy"


def read_proxy_objects(api: Api) -> ProxyObjects:
    """Ask the API in three requests, however many nodes there are.

    What the server refuses or what can't be decoded is a reason in ``unread``.
    """
    unread: dict[str, str] = {}
    config_maps: dict[str, Mapping[str, object]] = {}
    for name, key in _CONFIG_MAPS:
        try:
            config = _config(api, name, key)
        except (ApiError, ValueError) as error:
            unread.setdefault("proxy_objects.config_maps", _sentence(error))
        else:
            if config is not None:
                config_maps[f"{_NAMESPACE}/{name}"] = config
    pods: tuple[ProxyPod, ...] = ()
    try:
        # Without pages: their number would grow with that of the nodes.
        items = api.items(_PODS, limit=0, labelSelector=_SELECTOR)
        pods = tuple(sorted(map(proxy_pod, items), key=lambda pod: (pod.node, pod.name)))
    except (ApiError, ValueError) as error:
        unread["proxy_objects.pods"] = _sentence(error)
    return ProxyObjects(config_maps=config_maps, pods=pods, unread=unread)


def _config(api: Api, name: str, key: str) -> Mapping[str, object] | None:
    """The decoded configuration, ``None`` where there is none. Raises ``ValueError``."""
    try:
        found = api.get(f"/api/v1/namespaces/{_NAMESPACE}/configmaps/{name}")
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    fields = Fields("ConfigMap", found)
    text = fields.mapping(found, "data").get(key)
    if text is None:
        return None
    where = f"ConfigMap {_NAMESPACE}/{name}: {key}"
    try:
        document = read_yaml(text)
    except YamlError as error:
        raise ValueError(f"{where} is no YAML: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{where} is {type(document).__name__}, expected a mapping")
    return document


def proxy_pod(item: Mapping[str, Any]) -> ProxyPod:
    """One kube-proxy pod of the API. Raises ``ValueError`` for what is no pod."""
    fields = Fields("Pod", item)
    spec, status = fields.mapping(item, "spec"), fields.mapping(item, "status")
    containers = fields.mappings(spec, "spec.containers")
    container = _own(containers) or {}
    state = _own(fields.mappings(status, "status.containerStatuses")) or {}
    restarts = fields.number(state, "restartCount", 0, 2**31) or 0
    running = fields.mapping(fields.mapping(state, "state"), "running")
    words = (
        *fields.items(container, "spec.containers.command"),
        *fields.items(container, "spec.containers.args"),
    )
    return ProxyPod(
        name=fields.name,
        node=fields.text(spec, "spec.nodeName"),
        image=fields.text(container, "spec.containers.image"),
        ready=fields.flag(state, "ready", False),
        restarts=restarts,
        restarted_at=_seconds(running.get("startedAt")) if restarts else None,
        command=tuple(str(word) for word in words),
    )


def _own(items: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """kube-proxy's container among those of its pod; a mesh may add others."""
    named = (item for item in items if item.get("name") == "kube-proxy")
    return next(named, items[0] if items else None)


def _seconds(moment: object) -> float | None:
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return None


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
