"""The forms in which objects are answered: whole, metadata only, or as the table kubectl prints.

Columns and cells follow the printers of Kubernetes (``pkg/printers/internalversion``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.lab.api import cells, errors
from pytest_ipvs.lab.api.kinds import Kind
from pytest_ipvs.lab.api.messages import Request

Json = dict[str, Any]

_META = "meta.k8s.io/v1"
_JSON_TYPES = frozenset({"application/json", "application/*", "*/*"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """In which form a request wants objects: ``shape`` is "", "Table" or "PartialObjectMetadata".

    ``include`` says what a table's rows carry besides cells: "Metadata", "Object" or "None".
    """

    shape: str = ""
    include: str = "Metadata"

    @staticmethod
    def of(request: Request, *, minor: int) -> Form:
        """The form that the Accept header asks for; raises a 406 ``ApiError``."""
        for media in request.accepts:
            if media[""] not in _JSON_TYPES:
                continue
            wanted = media.get("as", "")
            if not wanted:
                return Form()
            if media.get("g") != "meta.k8s.io" or media.get("v") != "v1":
                continue
            if wanted == "Table":
                return Form(shape="Table", include=request.query.get("includeObject", "Metadata"))
            if wanted in {"PartialObjectMetadata", "PartialObjectMetadataList"}:
                return Form(shape="PartialObjectMetadata")
        raise errors.not_acceptable(minor=minor)

    @property
    def plain(self) -> bool:
        """Whether objects are answered as they are."""
        return not self.shape

    def of_object(self, kind: Kind, object_: Json) -> Json:
        """One object in this form."""
        if self.shape == "Table":
            version = {"resourceVersion": object_["metadata"].get("resourceVersion", "")}
            return self._table(kind, [object_], version)
        if self.shape:
            return _partial(object_)
        return object_

    def of_list(self, kind: Kind, answer: Json) -> Json:
        """A list in this form; items of a plain list do not repeat kind and apiVersion."""
        items: list[Json] = answer["items"]
        if self.shape == "Table":
            return self._table(kind, items, answer["metadata"])
        if self.shape:
            shown = [_partial(item) for item in items]
            head = {"kind": "PartialObjectMetadataList", "apiVersion": _META}
            return {**answer, **head, "items": shown}
        bare = [
            {key: value for key, value in item.items() if key not in {"kind", "apiVersion"}}
            for item in items
        ]
        return {**answer, "items": bare}

    def of_event(self, kind: Kind, object_: Json, *, first: bool) -> Json:
        """The object of a watch event; only the first table of a watch names the columns."""
        if self.shape != "Table":
            return self.of_object(kind, object_)
        if "name" not in object_["metadata"]:
            # A bookmark: a table without rows.
            table = self._table(kind, [], object_["metadata"])
        else:
            table = self.of_object(kind, object_)
        if not first:
            table["columnDefinitions"] = None
        return table

    def _table(self, kind: Kind, items: list[Json], metadata: Json) -> Json:
        columns, cells_of = _printer(kind)
        rows = []
        for item in items:
            row: Json = {"cells": cells_of(item)}
            if self.include == "Object":
                row["object"] = item
            elif self.include != "None":
                row["object"] = _partial(item)
            rows.append(row)
        return {
            "kind": "Table",
            "apiVersion": _META,
            "metadata": metadata,
            "columnDefinitions": columns,
            "rows": rows,
        }


def _partial(object_: Json) -> Json:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": _META,
        "metadata": object_["metadata"],
    }


def _printer(kind: Kind) -> tuple[list[Json], Callable[[Json], list[Any]]]:
    printer = cells.PRINTERS.get(kind.qualified)
    names, wide, function = printer or (("Name", "Age"), (), cells.name_and_age)
    columns = [_column(name, 0) for name in names] + [_column(name, 1) for name in wide]
    return columns, function


def _column(name: str, priority: int) -> Json:
    type_ = "integer" if name in cells.NUMBERS else "string"
    format_ = "name" if name == "Name" else ""
    return {"name": name, "type": type_, "format": format_, "description": "", "priority": priority}
