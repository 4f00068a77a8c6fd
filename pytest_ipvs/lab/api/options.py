"""What a request asks for besides its object: dry run, manager, preconditions, propagation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_ipvs.lab.api.errors import ApiError, bad_request

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """Options of create, update and patch.

    ``validation`` is "Strict", "Warn" or "Ignore": what becomes of unknown fields.
    """

    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Ignore"
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOptions:
    """Options of delete. ``grace`` is in seconds, ``None`` = the object's own."""

    dry_run: bool = False
    grace: int | None = None
    propagation: str = ""
    uid: str = ""
    resource_version: str = ""


def _dry_run(values: object) -> bool:
    if not values:
        return False
    if values not in ("All", ["All"]):
        raise ApiError(
            422,
            "Invalid",
            f'PatchOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: '
            f'"{values}": supported values: "All"',
            {},
        )
    return True


def write_options(query: Mapping[str, str], user_agent: str, *, minor: int) -> WriteOptions:
    """Read the options of a create, update or patch from its query."""
    validation = query.get("fieldValidation", "")
    if minor < 25:
        validation = "Ignore"
    elif validation not in {"", "Strict", "Warn", "Ignore"}:
        raise bad_request(
            f'invalid fieldValidation: Unsupported value: "{validation}": supported values: '
            '"Ignore", "Strict", "Warn"'
        )
    manager = query.get("fieldManager") or user_agent.partition("/")[0] or "unknown"
    return WriteOptions(
        manager=manager[:128],
        dry_run=_dry_run(query.get("dryRun")),
        validation=validation or "Warn",
        force=query.get("force", "") in {"true", "1"},
    )


def delete_options(query: Mapping[str, str], body: Json) -> DeleteOptions:
    """Read the options of a delete from its body, or from its query where the body is silent."""
    grace = body.get("gracePeriodSeconds")
    if grace is None and query.get("gracePeriodSeconds"):
        grace = query["gracePeriodSeconds"]
    try:
        seconds = None if grace is None else int(grace)
    except (TypeError, ValueError):
        raise bad_request(f"gracePeriodSeconds: expected a number, got {grace!r}") from None
    propagation = body.get("propagationPolicy") or query.get("propagationPolicy") or ""
    orphan = body.get("orphanDependents")
    if orphan is not None and not propagation:
        propagation = "Orphan" if orphan else "Background"
    if propagation not in {"", "Orphan", "Background", "Foreground"}:
        raise ApiError(
            422,
            "Invalid",
            'DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: '
            f'Invalid value: "{propagation}": must be one of "Background", "Foreground", '
            '"Orphan"',
            {},
        )
    preconditions = body.get("preconditions") or {}
    return DeleteOptions(
        dry_run=_dry_run(body.get("dryRun") or query.get("dryRun")),
        grace=seconds,
        propagation=propagation,
        uid=str(preconditions.get("uid") or ""),
        resource_version=str(preconditions.get("resourceVersion") or ""),
    )
