"""The Lease of disruptions: one holder, no other's is touched, and the dead are followed."""

from __future__ import annotations

import threading

import pytest
from api_fake import LEASE, NAMESPACE, FakeApi, StatusError

from pytest_ipvs.rollout import RolloutError
from pytest_ipvs.rollout import lease as lease_module
from pytest_ipvs.rollout.drain import CORDONED_BY
from pytest_ipvs.traffic.namespace import micro_time


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


OLD = {
    "holderIdentity": "gone/1/x",
    "leaseDurationSeconds": 60,
    "renewTime": "2026-01-01T00:00:00Z",
}


def put_lease(api: FakeApi, **change: object) -> None:
    """A Lease that was not renewed for long, by our clock."""
    metadata = {"name": "disruption", "uid": "old", "resourceVersion": "7"}
    api.objects[LEASE] = {"metadata": metadata, "spec": {**OLD, **change}}


def test_the_lease_is_held_and_leaves_nothing(api: FakeApi) -> None:
    with api.lease() as lease:
        assert api.objects[LEASE]["spec"]["holderIdentity"] == lease.holder
        assert NAMESPACE in api.objects
    assert api.objects == {}


def test_another_live_holder_is_one_sentence(api: FakeApi) -> None:
    with (
        api.lease() as first,
        pytest.raises(RolloutError, match="expected one run at a time") as told,
        api.lease(),
    ):
        pass
    assert first.holder in str(told.value)
    assert str(told.value).startswith("drain node-2 is refused: ")


def test_a_dead_holder_is_followed(api: FakeApi) -> None:
    put_lease(api)
    with api.lease() as lease:
        assert api.objects[LEASE]["spec"]["holderIdentity"] == lease.holder
    assert sum(api.pauses) == 60
    assert api.said == [
        (
            "the Lease pytest-ipvs/disruption of gone/1/x was last renewed 2026-01-01T00:00:00Z; "
            "watching for 60 s whether it still lives"
        ),
        "taking over the Lease of gone/1/x, which has died",
    ]
    assert LEASE not in api.objects


def test_a_live_holder_whose_clock_is_behind_is_not_followed(api: FakeApi) -> None:
    put_lease(api, holderIdentity="slow/1/x")
    lease = api.lease()

    def renewed(_: float) -> None:
        api.objects[LEASE]["spec"]["renewTime"] = "2026-01-01T00:00:15Z"

    lease._pause = renewed
    with pytest.raises(RolloutError, match="slow/1/x is disrupting this cluster"), lease:
        pass
    assert api.objects[LEASE]["spec"]["holderIdentity"] == "slow/1/x"


def test_a_lease_that_ends_while_it_is_watched_is_free(api: FakeApi) -> None:
    put_lease(api)
    lease = api.lease()
    lease._pause = lambda _: api.objects.pop(LEASE, None)  # type: ignore[assignment,return-value]
    with lease:
        assert api.objects[LEASE]["spec"]["holderIdentity"] == lease.holder


def test_whoever_is_faster_has_it(api: FakeApi) -> None:
    put_lease(api)
    api.refusals[f"PUT {LEASE}"] = [StatusError(409)]
    with pytest.raises(RolloutError, match="another run is disrupting"), api.lease():
        pass


def test_a_namespace_that_is_going_away_is_waited_for(api: FakeApi) -> None:
    ending = {"metadata": {"name": "pytest-ipvs", "deletionTimestamp": micro_time()}}
    api.objects[NAMESPACE] = ending
    api.refusals[f"POST {LEASE}"] = [StatusError(403)]
    with api.lease():
        pass
    assert api.pauses == [1.0]


def test_a_lease_that_another_run_took_over_stays_its(api: FakeApi) -> None:
    with api.lease() as lease:
        api.taken_over("b")
    assert api.objects[LEASE]["spec"]["holderIdentity"] == "b"
    assert NAMESPACE in api.objects
    assert lease.lost == api.said[-1]
    assert lease.lost.startswith(
        "drain node-2: the Lease pytest-ipvs/disruption was lost and is held by b, so another run "
    )


def test_another_runs_lease_is_not_renewed(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    with api.lease() as lease:
        monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.0)
        api.taken_over("b")
        before = api.objects[LEASE]["spec"]["renewTime"]
        renewer = threading.Thread(target=lease._renew, daemon=True)
        renewer.start()
        renewer.join(20)  # it gives up by itself
        assert not renewer.is_alive()
        assert api.objects[LEASE]["spec"]["renewTime"] == before


def test_a_renewal_never_meets_a_lease_that_was_taken_meanwhile(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = api.get

    def taken_after_the_look(path: str, **query: object) -> object:
        found = read(path, **query)
        if path == LEASE and found["spec"]["holderIdentity"] != "b":
            api.taken_over("b")
        return found

    with api.lease() as lease:
        monkeypatch.setattr(api, "get", taken_after_the_look)
        assert lease._renew_once() is None
    assert "held by b" in lease.lost


def test_a_lease_that_somebody_removed_is_lost(api: FakeApi) -> None:
    with api.lease() as lease:
        del api.objects[LEASE]
    assert "is held by nobody, it was removed" in lease.lost


def test_an_api_server_that_is_away_at_the_end_is_told(api: FakeApi) -> None:
    with api.lease() as lease:
        api.refusals[f"GET {LEASE}"] = [StatusError(503, "away")]
    assert lease.lost == ""
    assert api.said == ["the Lease pytest-ipvs/disruption was not removed: away"]


def test_a_namespace_that_must_stay_does_not_keep_the_lease(api: FakeApi) -> None:
    with api.lease():
        api.refusals[f"DELETE {NAMESPACE}"] = [StatusError(403, "no")]
    assert list(api.objects) == [NAMESPACE]
    assert api.said == ["the Lease pytest-ipvs/disruption was not removed: no"]


def test_who_may_not_look_for_cordoned_nodes_goes_on(api: FakeApi) -> None:
    api.refusals["LIST /api/v1/nodes"] = [StatusError(403, "forbidden")]
    with api.lease():
        assert LEASE in api.objects
    assert api.said == [
        "nodes that a dead run may have left cordoned were not looked for: forbidden"
    ]


def test_an_interrupt_while_nodes_are_uncordoned_leaves_no_lease(api: FakeApi) -> None:
    api.put_node("node-2", unschedulable=True)
    api.objects["/api/v1/nodes/node-2"]["metadata"]["annotations"] = {CORDONED_BY: "gone/1/x"}
    api.refusals["PATCH /api/v1/nodes/node-2"] = [StatusError(503)]
    lease = api.lease()

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    lease._pause = interrupt
    with pytest.raises(KeyboardInterrupt), lease:
        pass
    assert LEASE not in api.objects
