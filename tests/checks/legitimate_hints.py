"""Zone hints that count and that don't: by release, feature gate and annotation of the Service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from legitimate_cases import BOTH, VIP, A, B, Case, hinted, service, slice_of

HINTS = "service.kubernetes.io/topology-aware-hints"
MODE = "service.kubernetes.io/topology-mode"
DISTRIBUTION = "ServiceTrafficDistribution"


def asked(annotations: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """A Service with these annotations, and its endpoints, one hinted for each node's zone."""
    return service(annotations=annotations), slice_of(hinted(A, "z1"), hinted(B, "z2"))


def gates(**values: bool) -> dict[str, Any]:
    return {"featureGates": values}


def case(
    annotations: Mapping[str, str],
    version: str,
    table: str,
    trips: str,
    contrast: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
) -> Case:
    return Case(
        objects=asked(annotations),
        zones=True,
        table={VIP: table},
        first={VIP: A},
        version=version,
        config=config or {},
        true=frozenset({"KP-06"}),
        contrast=contrast,
        trips=trips,
    )


HINT_CASES: dict[str, Case] = {
    "06-hints-need-an-annotation-until-1.30": case(
        {}, "v1.29.4", BOTH, "TB-03", {"version": "v1.31.0"}
    ),
    "06-hints-that-the-service-asks-for": case(
        {MODE: "Auto"}, "v1.30.2", B, "TB-02", {"objects": asked({})}
    ),
    "06-a-word-that-asks-for-hints-from-1.27-on": case(
        {MODE: "ByNode"}, "v1.27.0", B, "TB-02", {"objects": asked({MODE: "Disabled"})}
    ),
    "06-the-older-annotation-wins": case(
        {HINTS: "disabled", MODE: "Auto"}, "v1.28.0", BOTH, "TB-03", {"objects": asked({MODE: "x"})}
    ),
    "06-the-newer-annotation-means-nothing-until-1.26": case(
        {MODE: "Auto"}, "v1.26.0", BOTH, "TB-03", {"version": "v1.27.0"}
    ),
    "06-only-auto-counts-until-1.26": case(
        {HINTS: "ByNode"}, "v1.26.0", BOTH, "TB-03", {"objects": asked({HINTS: "auto"})}
    ),
    "06-a-gate-of-1.30-needs-no-annotation": case(
        {}, "v1.30.0", B, "TB-02", {"config": {}}, gates(**{DISTRIBUTION: True})
    ),
    "06-without-the-gate-1.31-needs-the-annotation": case(
        {}, "v1.31.0", BOTH, "TB-03", {"config": {}}, gates(**{DISTRIBUTION: False})
    ),
    "06-either-in-1.21": case(
        {HINTS: "Auto"},
        "v1.21.3",
        BOTH,
        "TB-03",
        {"version": "v1.22.0"},
        gates(TopologyAwareHints=True),
    ),
}
