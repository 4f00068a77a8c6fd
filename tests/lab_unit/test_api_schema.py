"""The field lists of the embedded API against the official client's models."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client

from pytest_ipvs.lab.api import protobuf
from pytest_ipvs.lab.api.errors import ApiError
from pytest_ipvs.lab.api.kinds import registry
from pytest_ipvs.lab.api.schema import drop_unknown_fields
from pytest_ipvs.lab.api.schema_types import TYPES

# Where the client names a model differently from the type.
_MODELS = {
    "Subject": "RbacV1Subject",
    "Event": "CoreV1Event",
    "EndpointPort": "CoreV1EndpointPort",
    "DiscoveryEndpointPort": "DiscoveryV1EndpointPort",
}


@pytest.mark.parametrize("type_", sorted(TYPES))
def test_no_field_of_the_clients_model_is_forgotten(type_: str) -> None:
    model = getattr(client, _MODELS.get(type_, f"V1{type_}"), None)
    if model is None:
        pytest.skip(f"the installed client has no model of {type_}")
    ours = {word.partition(":")[0] for word in TYPES[type_].split()}
    assert set(model.attribute_map.values()) - ours == set()


def test_every_type_named_by_a_field_is_written_down() -> None:
    for words in TYPES.values():
        for word in words.split():
            name = word.partition(":")[2].removeprefix("[]")
            assert not name or name in TYPES


def test_every_stored_kind_has_its_fields() -> None:
    stored = {kind.kind for kind in registry("1.36.2").kinds if kind.stored}
    assert stored - TYPES.keys() == set()


def test_unknown_fields_are_dropped_and_named_by_path() -> None:
    pods = registry("1.36.2").by_plural("pods")
    pod: dict[str, Any] = {
        "metadata": {"name": "p", "labels": {"anything": "goes"}, "nam": "x"},
        "spec": {"containers": [{"name": "c"}, {"name": "d", "imagee": "x"}], "what": 1},
        "status": {"anything": "goes"},
    }
    unknown = drop_unknown_fields(pods, pod)
    assert unknown == ["metadata.nam", "spec.containers[1].imagee", "spec.what"]
    assert pod["spec"] == {"containers": [{"name": "c"}, {"name": "d"}]}


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2, len(content))) + content


def _envelope(kind: bytes, raw: bytes) -> bytes:
    return b"k8s\0" + _field(1, _field(1, b"v1") + _field(2, kind)) + _field(2, raw)


def test_protobuf_is_read() -> None:
    metadata = _field(1, _field(1, b"c") + _field(11, _field(1, b"a") + _field(2, b"b")))
    body = _envelope(b"ConfigMap", metadata + _field(2, _field(1, b"k") + _field(2, b"v")))
    assert protobuf.decode(body) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "labels": {"a": "b"}},
        "data": {"k": "v"},
    }


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 400),
        (_envelope(b"ConfigMap", b"\x0a\xff"), 400),
        (_envelope(b"ConfigMap", b"\x09"), 400),
        (_envelope(b"ConfigMap", b"\x08\x01"), 400),
        (_envelope(b"ConfigMap", _field(15, b"x")), 415),
        (_envelope(b"Unheard", b""), 415),
        (b"k8s\0\x80", 400),
    ],
)
def test_protobuf_that_is_not_understood_is_refused(body: bytes, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        protobuf.decode(body)
    assert caught.value.status == status
