"""What samples of kube-proxy's metrics say."""

from __future__ import annotations

import pytest

from pytest_ipvs.checks.metrics import at_least, by_family, total


def test_samples_by_family() -> None:
    metrics = {
        'a{ip_family="IPv4",x="y"}': 1.0,
        'a{ip_family="IPv4",x="z"}': 2.0,
        'a{ip_family="IPv6"}': 4.0,
        "a": 8.0,
        'a_total{ip_family="IPv4"}': 16.0,
    }
    assert by_family(metrics, "a") == {"IPv4": 3.0, "IPv6": 4.0, "": 8.0}
    assert (total(metrics, "a"), total(metrics, "b")) == (15.0, 0.0)


@pytest.mark.parametrize(
    ("counts", "bound"),
    [
        ({"1": 0, "2": 0, "+Inf": 0}, None),
        # The longest of all is left out, so that one alone says nothing.
        ({"1": 0, "2": 0, "+Inf": 1}, None),
        ({"1": 1, "2": 1, "+Inf": 2}, 0.0),
        ({"1": 0, "2": 2, "+Inf": 2}, 1.0),
        ({"1": 97, "2": 100, "+Inf": 101}, 1.0),
        ({"1": 97, "2": 98, "+Inf": 101}, 2.0),
        ({"broken": 5}, None),
    ],
)
def test_a_quantile_is_at_least_the_lower_bound_of_its_bucket(
    counts: dict[str, int], bound: float | None
) -> None:
    metrics = {f'h_bucket{{le="{le}"}}': float(count) for le, count in counts.items()}
    found = at_least(metrics, "h", 0.99)
    assert found == ({} if bound is None else {"": bound})
