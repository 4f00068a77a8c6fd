"""Patches, selectors and field owners by themselves."""

from __future__ import annotations

from typing import Any

import pytest
from any_text import any_text
from hypothesis import given
from hypothesis import strategies as st

from pytest_ipvs.lab.api.errors import ApiError
from pytest_ipvs.lab.api.managed import apply, leaves, record_update
from pytest_ipvs.lab.api.patch import json_patch, merge_patch, strategic_merge_patch
from pytest_ipvs.lab.api.selectors import parse_labels, selector_matches, selector_text
from pytest_ipvs.lab.api.store import clone

Json = dict[str, Any]


def containers(*names: str) -> Json:
    return {"containers": [{"name": name, "image": f"{name}:1"} for name in names]}


@pytest.mark.parametrize(
    ("document", "patch", "wanted"),
    [
        ({"a": 1}, {"a": None, "b": {"c": None, "d": 1}}, {"b": {"d": 1}}),
        (
            containers("x", "y"),
            {"containers": [{"name": "y", "image": "y:2"}]},
            {"containers": [{"name": "x", "image": "x:1"}, {"name": "y", "image": "y:2"}]},
        ),
        (
            containers("x"),
            {"containers": [{"name": "z"}]},
            {"containers": [{"name": "x", "image": "x:1"}, {"name": "z"}]},
        ),
        (
            containers("x", "y"),
            {"containers": [{"name": "x", "$patch": "delete"}]},
            containers("y"),
        ),
        (
            containers("x", "y"),
            {"containers": [{"name": "z"}, {"$patch": "replace"}]},
            {"containers": [{"name": "z"}]},
        ),
        (
            containers("x", "y"),
            {"$setElementOrder/containers": [{"name": "y"}, {"name": "x"}], "containers": []},
            containers("y", "x"),
        ),
        (
            containers("x", "y"),
            {"$setElementOrder/containers": [{"name": "y"}, {"name": "x"}]},
            containers("y", "x"),
        ),
        (
            {"ports": [{"port": 80, "name": "a"}]},
            {"ports": [{"port": 80, "name": "b"}]},
            {"ports": [{"port": 80, "name": "b"}]},
        ),
        (
            {"ports": [{"containerPort": 80}]},
            {"ports": [{"containerPort": 81}]},
            {"ports": [{"containerPort": 80}, {"containerPort": 81}]},
        ),
        ({"finalizers": ["a"]}, {"finalizers": ["b"]}, {"finalizers": ["a", "b"]}),
        (
            {"finalizers": ["a", "b"]},
            {"$deleteFromPrimitiveList/finalizers": ["a"]},
            {"finalizers": ["b"]},
        ),
        ({"externalIPs": ["a"]}, {"externalIPs": ["b"]}, {"externalIPs": ["b"]}),
        (
            {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}},
            {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}},
            {"strategy": {"type": "Recreate"}},
        ),
        ({"m": {"a": 1}}, {"m": {"$patch": "replace", "b": 2}}, {"m": {"b": 2}}),
        ({"m": {"a": 1}}, {"m": {"$patch": "delete"}}, {"m": {}}),
        (
            {"tolerations": [{"key": "a"}]},
            {"tolerations": [{"key": "b"}]},
            {"tolerations": [{"key": "b"}]},
        ),
    ],
)
def test_strategic_merge(document: Json, patch: Json, wanted: Json) -> None:
    before = clone(document)
    assert strategic_merge_patch(document, patch) == wanted
    assert document == before


def test_a_merged_item_needs_its_key() -> None:
    with pytest.raises(ApiError, match="merge key: name"):
        strategic_merge_patch(containers("x"), {"containers": [{"image": "z"}]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | any_text(3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values, json_values)
def test_a_merge_patch_applied_twice_is_applied_once(document: Any, patch: Any) -> None:
    once = merge_patch(document, patch)
    assert merge_patch(once, patch) == once


@pytest.mark.parametrize(
    ("document", "operations", "wanted"),
    [
        ({"a": [1, 2]}, [{"op": "add", "path": "/a/1", "value": 9}], {"a": [1, 9, 2]}),
        ({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}], {"a": [1, 2]}),
        ({"a": 1}, [{"op": "move", "from": "/a", "path": "/b"}], {"b": 1}),
        ({"a": 1}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": 1, "b": 1}),
        ({"a/b": {"~": 1}}, [{"op": "remove", "path": "/a~1b/~0"}], {"a/b": {}}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
    ],
)
def test_json_patch(document: Json, operations: list[Json], wanted: Json) -> None:
    before = clone(document)
    assert json_patch(document, operations) == wanted
    assert document == before


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": 2},
        {"op": "replace", "path": "/none", "value": 2},
        {"op": "remove", "path": "/list/7"},
        {"op": "remove", "path": "/list/-1"},
        {"op": "add", "path": "/none/deep", "value": 1},
        {"op": "add", "path": "a", "value": 1},
        {"op": "what", "path": "/a"},
        {"path": "/a"},
    ],
)
def test_a_json_patch_that_does_not_fit_is_refused(operation: Json) -> None:
    with pytest.raises(ApiError) as caught:
        json_patch({"a": 1, "list": [1]}, [operation])
    assert caught.value.status == 422


@pytest.mark.parametrize(
    ("text", "labels", "wanted"),
    [
        ("a=b", {"a": "b"}, True),
        ("a==b", {"a": "c"}, False),
        ("a!=b", {}, True),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("a in (b, c),d notin (e)", {"a": "c"}, True),
        ("a in (b)", {}, False),
        ("example.org/a=b,", {"example.org/a": "b"}, True),
        ("a=", {"a": ""}, True),
        ("", {"x": "y"}, True),
    ],
)
def test_label_selectors(text: str, labels: dict[str, str], wanted: bool) -> None:
    assert parse_labels(text)(labels) is wanted


@pytest.mark.parametrize("text", ["a==,=", "a in b", "a in (b", "=b", "a b", "a,,b", "(a)"])
def test_a_broken_selector_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_labels(text)
    assert caught.value.status == 400


def test_selector_objects() -> None:
    selector = {
        "matchLabels": {"a": "b"},
        "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]},
            {"key": "f", "operator": "DoesNotExist"},
        ],
    }
    assert selector_text(selector) == "a=b,c in (d,e),!f"
    assert selector_matches(selector, {"a": "b", "c": "e"})
    assert not selector_matches(selector, {"a": "b", "c": "e", "f": ""})


# Field owners


def live(**data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": dict(data)}


def applied(base: Json | None, manager: str, *, force: bool = False, **data: str) -> Json:
    return apply(base, live(**data), manager=manager, time="2026-01-01T00:00:00Z", force=force)


def owners(object_: Json) -> dict[tuple[str, str], list[str]]:
    return {
        (entry["manager"], entry["operation"]): sorted(entry["fieldsV1"].get("f:data", {}))
        for entry in object_["metadata"].get("managedFields", [])
    }


def test_what_a_manager_no_longer_applies_is_removed() -> None:
    first = applied(None, "one", a="1", b="2")
    second = applied(first, "one", a="1")
    assert second["data"] == {"a": "1"}
    assert owners(second) == {("one", "Apply"): ["f:a"]}


def test_what_another_manager_also_applies_stays() -> None:
    shared = applied(applied(None, "one", a="1"), "two", a="1")
    assert owners(shared) == {("one", "Apply"): ["f:a"], ("two", "Apply"): ["f:a"]}
    assert applied(shared, "one", b="2")["data"] == {"a": "1", "b": "2"}


def test_a_conflict_names_every_field_and_force_takes_them() -> None:
    first = applied(None, "one", a="1", b="2")
    with pytest.raises(ApiError) as caught:
        applied(first, "two", a="x", b="y")
    assert caught.value.status == 409
    fields = [cause["field"] for cause in (caught.value.details or {})["causes"]]
    assert fields == [".data.a", ".data.b"]
    assert 'Apply failed with 2 conflicts: conflicts with "one":' in caught.value.message
    taken = applied(first, "two", force=True, a="x")
    assert taken["data"] == {"a": "x", "b": "2"}
    assert owners(taken) == {("one", "Apply"): ["f:b"], ("two", "Apply"): ["f:a"]}


def test_an_update_takes_the_fields_that_it_changes() -> None:
    first = applied(None, "one", a="1", b="2")
    new = clone(first)
    new["data"]["a"] = "changed"
    record_update(new, first, manager="two", time="2026-01-01T00:00:01Z")
    assert owners(new) == {("one", "Apply"): ["f:b"], ("two", "Update"): ["f:a"]}
    with pytest.raises(ApiError, match=r'conflict with "two" using v1: \.data\.a'):
        applied(new, "one", a="1", b="2")


def test_items_of_lists_are_owned_one_by_one() -> None:
    first: Json = {"apiVersion": "v1", "metadata": {"name": "p"}, "spec": containers("x", "y")}
    made = apply(None, first, manager="one", time="t", force=False)
    second = {**first, "spec": containers("x")}
    assert apply(made, second, manager="one", time="t", force=False)["spec"] == containers("x")
    assert ("f:spec", "f:containers", 'k:{"name":"x"}', "f:image") in leaves(first)
    # An item that somebody else changed stays, with the name that tells it apart.
    changed = clone(made)
    changed["spec"]["containers"][1]["image"] = "y:2"
    record_update(changed, made, manager="two", time="t")
    left = apply(changed, second, manager="one", time="t", force=False)
    assert left["spec"]["containers"][1] == {"name": "y", "image": "y:2"}
