"""Tells whether a Kubernetes cluster in IPVS mode keeps its promises, and why not."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipvs.assertions import (
        assert_affinity_follows_endpoints,
        assert_balanced,
        assert_no_connection_failures,
        assert_no_slow_connects,
        assert_no_stale_real_servers,
        assert_sysctl,
        assert_tables_match_api,
    )
    from pytest_ipvs.checks.findings import Finding, NotMeasured
    from pytest_ipvs.policy import Policy
    from pytest_ipvs.settings import Settings

__version__ = "0.1.0.dev0"

__all__ = [
    "Finding",
    "NotMeasured",
    "Policy",
    "Settings",
    "__version__",
    "assert_affinity_follows_endpoints",
    "assert_balanced",
    "assert_no_connection_failures",
    "assert_no_slow_connects",
    "assert_no_stale_real_servers",
    "assert_sysctl",
    "assert_tables_match_api",
]

_HOMES = {
    "Finding": "checks.findings",
    "NotMeasured": "checks.findings",
    "Policy": "policy",
    "Settings": "settings",
}


def __getattr__(name: str) -> object:
    # On first use, because every start of pytest imports this package.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "assertions")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
