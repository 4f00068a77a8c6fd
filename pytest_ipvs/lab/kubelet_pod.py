"""What the kubelet stand-in works out of a pod's object: command, environment, files, status."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_ipvs.lab.client import CONFIG_MAPS, SECRETS, ApiClient, Object, Resource
from pytest_ipvs.lab.informers import timestamp

SERVER_PATH = "/opt/lab/server.py"
"""Where the built-in server lies in a pod whose image brings no command."""


class PodSpecError(Exception):
    """The pod can't be started as it is; ``reason`` is the container's waiting reason."""

    def __init__(self, message: str, reason: str = "CreateContainerConfigError") -> None:
        super().__init__(message)
        self.reason = reason


def server_source() -> str:
    """The text of the built-in server: data that is shipped into pods, never imported here."""
    return (Path(__file__).parents[1] / "traffic" / "server.py").read_text()


def container_of(pod: Object) -> Object:
    """The pod's only container."""
    containers: list[Object] = pod["spec"]["containers"]
    if len(containers) > 1 or pod["spec"].get("initContainers"):
        names = [
            container["name"]
            for container in [*(pod["spec"].get("initContainers") or []), *containers]
        ]
        raise PodSpecError(f"the lab runs one container per pod, this one has {', '.join(names)}")
    return containers[0]


def field_value(pod: Object, path: str) -> str:
    """The value of a downward API field."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    found = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if found:
        return str((meta.get(found[1]) or {}).get(found[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        values = meta.get(path.removeprefix("metadata.")) or {}
        return "".join(f'{key}="{value}"\n' for key, value in sorted(values.items()))
    simple: dict[str, Any] = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName"),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": status.get("podIP"),
        "status.podIPs": status.get("podIP"),
        "status.hostIP": status.get("hostIP"),
        "status.hostIPs": status.get("hostIP"),
    }
    if path not in simple:
        raise PodSpecError(f"fieldPath {path!r} is not one that the lab knows")
    return str(simple[path] or "")


class Sources:
    """Reads what pods refer to: ConfigMaps, Secrets, tokens."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    def data(self, resource: Resource, namespace: str, reference: Object) -> dict[str, str]:
        """The text values of a ConfigMap or Secret; empty when absent and optional."""
        import base64

        name = reference.get("name") or reference.get("secretName") or ""
        item = self._api.get(resource, namespace, name)
        if item is None:
            if reference.get("optional"):
                return {}
            raise PodSpecError(f'{resource.kind.lower()} "{name}" not found')
        values: dict[str, str] = dict(item.get("data") or {})
        if resource is SECRETS:
            return {
                key: base64.b64decode(value).decode(errors="replace")
                for key, value in values.items()
            }
        for key, value in (item.get("binaryData") or {}).items():
            values[key] = base64.b64decode(value).decode(errors="replace")
        return values

    def token(self, namespace: str, account: str) -> str:
        """A bearer token of a service account."""
        from pytest_ipvs.lab.client import SERVICE_ACCOUNTS

        path = SERVICE_ACCOUNTS.path(namespace, account, "token")
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 86400},
        }
        answer = self._api.request("POST", path, body)
        return str(answer["status"]["token"])


def environment(
    pod: Object, container: Object, sources: Sources, base: dict[str, str]
) -> dict[str, str]:
    """The container's environment: ``base``, then envFrom, then env with ``$(NAME)`` expanded."""
    namespace = pod["metadata"]["namespace"]
    result = dict(base)
    for entry in container.get("envFrom") or []:
        prefix = entry.get("prefix", "")
        for key, resource in (("configMapRef", CONFIG_MAPS), ("secretRef", SECRETS)):
            if key in entry:
                values = sources.data(resource, namespace, entry[key])
                result |= {prefix + name: value for name, value in values.items()}
    for entry in container.get("env") or []:
        if "valueFrom" not in entry:
            result[entry["name"]] = expand(entry.get("value") or "", result)
            continue
        value = _value_from(pod, entry["valueFrom"], sources)
        if value is not None:
            result[entry["name"]] = value
    return result


def _value_from(pod: Object, source: Object, sources: Sources) -> str | None:
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"])
    for key, resource in (("configMapKeyRef", CONFIG_MAPS), ("secretKeyRef", SECRETS)):
        if key in source:
            values = sources.data(resource, pod["metadata"]["namespace"], source[key])
            name = source[key]["key"]
            if name not in values and not source[key].get("optional"):
                raise PodSpecError(f'{resource.kind} "{source[key]["name"]}" has no key {name!r}')
            return values.get(name)
    # Resource limits mean nothing for the lab's processes.
    return "0" if "resourceFieldRef" in source else None


def expand(text: str, values: dict[str, str]) -> str:
    """``$(NAME)`` replaced by its value; unknown names stay, ``$$`` is a dollar sign."""
    return re.sub(
        r"\$(\$|\(([A-Za-z_.-][\w.-]*)\))",
        lambda found: "$" if found[1] == "$" else values.get(found[2], found[0]),
        text,
    )


def files(pod: Object, container: Object, sources: Sources) -> dict[str, str]:
    """Path to text of what the container's volume mounts show.

    A directory without files gets the file ``.keep``, so that it exists.
    """
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    result: dict[str, str] = {}
    for mount in container.get("volumeMounts") or []:
        volume = volumes.get(mount["name"])
        if volume is None:
            raise PodSpecError(f"volume {mount['name']!r} of a volumeMount does not exist")
        content = _volume(pod, volume, sources)
        path = mount["mountPath"].rstrip("/")
        sub = mount.get("subPath")
        if sub:
            if sub in content:
                result[path] = content[sub]
            continue
        result |= {f"{path}/{name}": text for name, text in content.items()}
        if not content:
            result[f"{path}/.keep"] = ""
    return result


def _volume(pod: Object, volume: Object, sources: Sources) -> dict[str, str]:
    namespace = pod["metadata"]["namespace"]
    if "configMap" in volume:
        source = volume["configMap"]
        return _items(source, sources.data(CONFIG_MAPS, namespace, source))
    if "secret" in volume:
        source = volume["secret"]
        return _items(source, sources.data(SECRETS, namespace, source))
    if "downwardAPI" in volume:
        return _downward(pod, volume["downwardAPI"])
    if "emptyDir" in volume:
        return {}
    if "projected" in volume:
        result: dict[str, str] = {}
        for source in volume["projected"].get("sources") or []:
            result |= _projected(pod, source, sources)
        return result
    kinds = ", ".join(key for key in volume if key != "name")
    raise PodSpecError(f"volume {volume['name']!r} is of a kind that the lab has not: {kinds}")


def _projected(pod: Object, source: Object, sources: Sources) -> dict[str, str]:
    namespace = pod["metadata"]["namespace"]
    if "serviceAccountToken" in source:
        account = pod["spec"].get("serviceAccountName", "default")
        return {source["serviceAccountToken"]["path"]: sources.token(namespace, account)}
    if "downwardAPI" in source:
        return _downward(pod, source["downwardAPI"])
    for key, resource in (("configMap", CONFIG_MAPS), ("secret", SECRETS)):
        if key in source:
            return _items(source[key], sources.data(resource, namespace, source[key]))
    return {}


def _items(source: Object, values: dict[str, str]) -> dict[str, str]:
    if not source.get("items"):
        return values
    return {item["path"]: values[item["key"]] for item in source["items"] if item["key"] in values}


def _downward(pod: Object, source: Object) -> dict[str, str]:
    return {
        item["path"]: field_value(pod, item["fieldRef"]["fieldPath"])
        for item in source.get("items") or []
        if "fieldRef" in item
    }


def command(pod: Object, container: Object, env: dict[str, str]) -> list[str]:
    """What to run: command and args, or the built-in server, told its ports by ``env``.

    Images are names only: nothing is pulled, and programs are those of the lab's machine.
    """
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    if container.get("command"):
        return [expand(word, env) for word in words]
    for port in container.get("ports") or []:
        name = "UDP_PORT" if port.get("protocol") == "UDP" else "PORT"
        env.setdefault(name, str(port["containerPort"]))
    env.setdefault("POD_NAME", pod["metadata"]["name"])
    return ["python3", SERVER_PATH]


def port_number(container: Object, port: int | str) -> int:
    """The number of a probe's or handler's port, given by number or by name."""
    if isinstance(port, int):
        return port
    if port.isdigit():
        return int(port)
    for entry in container.get("ports") or []:
        if entry.get("name") == port:
            return int(entry["containerPort"])
    raise PodSpecError(f"container {container['name']!r} has no port named {port!r}")


class Status:
    """The status that the kubelet writes, with condition times that move only with the value."""

    def __init__(self, pod: Object, host: str, clock: Callable[[], str] = timestamp) -> None:
        self._clock = clock
        self._pod = pod
        self._conditions: dict[str, Object] = {
            entry["type"]: dict(entry) for entry in pod.get("status", {}).get("conditions") or []
        }
        self._base: Object = {
            "hostIP": host,
            "hostIPs": [{"ip": host}],
            "startTime": clock(),
            "qosClass": pod.get("status", {}).get("qosClass", "BestEffort"),
        }
        self.restarts = 0
        self.last_state: Object = {}

    def address(self, address: str) -> None:
        """The pod has got its address."""
        self._base |= {"podIP": address, "podIPs": [{"ip": address}]}

    def whole(self, phase: str, state: Object, *, ready: bool, sandbox: bool) -> Object:
        """The status to write; ``state`` is the container's state, with one key."""
        done = phase in ("Succeeded", "Failed")
        reason = None if ready else "PodCompleted" if phase == "Succeeded" else "ContainersNotReady"
        name = self._pod["spec"]["containers"][0]["name"]
        message = None if ready else f"containers with unready status: [{name}]"
        if done:
            reason, message = reason or "PodFailed", None
        self._condition("PodReadyToStartContainers", sandbox)
        self._condition("Initialized", True)
        self._condition("Ready", ready, reason, message)
        self._condition("ContainersReady", ready, reason, message)
        self._condition("PodScheduled", True)
        order = (
            "PodReadyToStartContainers",
            "Initialized",
            "Ready",
            "ContainersReady",
            "PodScheduled",
        )
        containers = []
        for container in self._pod["spec"]["containers"]:
            entry: Object = {
                "name": container["name"],
                "state": state,
                "lastState": self.last_state,
                "ready": ready,
                "started": "running" in state,
                "restartCount": self.restarts,
                "image": container.get("image", ""),
                "imageID": "",
            }
            if "waiting" not in state:
                entry["containerID"] = f"lab://{self._pod['metadata']['uid']}"
                entry["imageID"] = "sha256:" + "0" * 64
            containers.append(entry)
        return {
            **self._base,
            "phase": phase,
            "conditions": [self._conditions[kind] for kind in order],
            "containerStatuses": containers,
        }

    def _condition(
        self, kind: str, value: bool, reason: str | None = None, message: str | None = None
    ) -> None:
        status = "True" if value else "False"
        known = self._conditions.get(kind)
        moved = known is None or known["status"] != status
        entry: Object = {
            "type": kind,
            "status": status,
            "lastProbeTime": None,
            "lastTransitionTime": (
                self._clock() if moved or known is None else known["lastTransitionTime"]
            ),
        }
        if reason:
            entry["reason"] = reason
        if message:
            entry["message"] = message
        self._conditions[kind] = entry
