"""What a run says, and leaves, when something that it needs is taken away in the middle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rollout_world import World, wait_until

from pytest_ipvs.rollout import Rollout, RolloutError, Workload, remove_stale
from pytest_ipvs.rollout import disrupt as disrupt_module
from pytest_ipvs.rollout import recorder as recorder_module
from pytest_ipvs.traffic import namespace as namespace_module
from pytest_ipvs.traffic import run as run_module

pytestmark = pytest.mark.system
REFUSED = "the API server can't be reached: connection refused"


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(disrupt_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(namespace_module, "DELETE_PAUSES", (0.0, 0.0))
    for name in ("API_PERIOD", "RELIST_PERIOD", "TABLE_PERIOD", "RETRY_SECONDS"):
        monkeypatch.setattr(recorder_module, name, 0.1)


@pytest.fixture
def soon_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is a gap at once; without a fault a busy machine would see gaps too."""
    monkeypatch.setattr(recorder_module, "GAP_SECONDS", 1.0)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def leaves_nothing() -> Iterator[Callable[[Rollout], Rollout]]:
    """Whatever becomes of a run, its client is gone afterwards, and so is what it wrote."""
    seen = []

    def watch(run: Rollout) -> Rollout:
        assert run._main is not None
        seen.append((run._main._pid, Path(run._main._folder)))
        return run

    yield watch
    assert seen
    for pid, folder in seen:
        wait_until(lambda pid=pid: not is_client(pid), "the client's end")
        assert not folder.exists()


def is_client(pid: int) -> bool:
    """Whether the process still lives; the number may be another's by now."""
    try:
        return b"pytest-ipvs" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def run_of(world: World, **options: Any) -> Rollout:
    """A run whose client speaks often."""
    return Rollout(world, "shop/web", plan={"tick": 0.1}, **options)


def gap_of(run: Rollout, what: str) -> bool:
    """Whether the record has a gap by now."""
    assert run._recorder is not None
    return any(gap.what == what for gap in run._recorder.timeline().gaps)


def test_a_killed_client_is_never_a_pass(world: World, leaves_nothing: Any) -> None:
    with run_of(world, settle=1.0) as run:
        leaves_nothing(run)
        run.restart()
        os.kill(run._main._pid, signal.SIGKILL)
        wait_until(lambda: not run._main.running, "the client's end")
    assert run.verdict == "inconclusive"
    assert any("died before its end" in reason for reason in run.reasons)


def test_without_its_watches_the_record_goes_on_by_lists(world: World, leaves_nothing: Any) -> None:
    with run_of(world) as run:
        leaves_nothing(run)
        world.watches_lost = "410 Gone"
        run.restart()
    assert (run.verdict, run.reasons) == ("passed", ())
    assert {pod.name for pod in run.timeline.old_pods} == {"web-1-1", "web-1-2"}
    assert run.timeline.gaps == ()
    assert run.timeline.unwatched["pods"] == "410 Gone"


@pytest.mark.usefixtures("soon_a_gap")
def test_a_node_that_is_lost_is_a_gap(world: World, leaves_nothing: Any) -> None:
    with run_of(world, settle=0.5) as run:
        leaves_nothing(run)
        run.restart()
        world.unreadable = "ssh: connect to host node-1 port 22: Connection refused"
        wait_until(lambda: gap_of(run, "node-1"), "the gap")
    assert run.verdict == "inconclusive"
    (told,) = [reason for reason in run.reasons if "node-1 was not read" in reason]
    assert told.startswith("gap in the record")
    assert told.endswith("Connection refused")


@pytest.mark.usefixtures("soon_a_gap")
def test_an_api_server_that_is_away_during_the_disruption_is_waited_for(
    world: World, leaves_nothing: Any
) -> None:
    def comes_back() -> None:
        wait_until(lambda: gap_of(run, "API"), "the gap")
        world.down = ""

    def goes_away() -> None:
        world.patch("/deployments/web", {"spec": {"template": {"metadata": {"annotations": 1}}}})
        world.down = REFUSED
        threading.Thread(target=comes_back).start()

    with run_of(world, settle=0.5) as run:
        leaves_nothing(run)
        run.disrupt("restart", goes_away)
        assert not world.down
    assert run.verdict == "inconclusive"
    (told,) = [reason for reason in run.reasons if "API was not read" in reason]
    assert told.endswith(REFUSED)


def test_an_api_server_that_stays_away_ends_the_run(world: World, leaves_nothing: Any) -> None:
    with run_of(world, timeout=0.5, baseline=0.1, settle=0.1) as run:
        leaves_nothing(run)
        with pytest.raises(RolloutError) as error:
            run.disrupt("a change", lambda: setattr(world, "down", REFUSED))
    assert str(error.value).endswith(f"did not come to rest within 0 s: {REFUSED}")
    assert run.verdict == "inconclusive"
    assert "not complete: a change" in run.reasons


def test_what_an_absent_api_server_keeps_is_removed_later(world: World) -> None:
    with pytest.raises(ConnectionError, match="connection refused"), Workload(world) as web:
        world.down = REFUSED
    world.down = ""
    assert f"/api/v1/namespaces/{web.namespace}" in world.objects
    # Its lease is fresh: another run can't know that this one has given up.
    assert remove_stale(world) == []
    namespace_module._remove_all()
    assert world.objects == {}


def test_a_disruption_that_may_not_have_been_alone_is_never_a_pass(
    world: World, leaves_nothing: Any
) -> None:
    with run_of(world) as run:
        leaves_nothing(run)
        run.restart()
        run._doubts.append("drain node-1: the Lease was lost")
    assert run.verdict == "inconclusive"
    assert run.reasons[-1] == "drain node-1: the Lease was lost"


class Refusing:
    """An API server without rights for us: it makes some kinds, and deletes nothing."""

    def __init__(self, *made: str, status: int | None = 403) -> None:
        self.made, self.status = made, status
        self.calls: list[str] = []

    def _refuse(self, what: str) -> Exception:
        self.calls.append(what)
        error = RuntimeError(f"no right to {what}")
        error.status = self.status  # type: ignore[attr-defined]
        return error

    def create(self, path: str, body: Any) -> dict[str, Any]:
        """POST."""
        if body["kind"] not in self.made:
            raise self._refuse(f"create a {body['kind']}")
        return dict(body)

    def delete(self, path: str, **_: Any) -> None:
        """DELETE."""
        raise self._refuse("delete")


@pytest.mark.parametrize("status", [403, 409])
def test_a_namespace_that_is_refused_is_not_deleted(status: int) -> None:
    api = Refusing(status=status)
    own = namespace_module.OwnNamespace(api)
    with pytest.raises(RuntimeError, match="no right to create a Namespace"):
        own.create()
    assert api.calls == ["create a Namespace"]
    assert not own.exists


@pytest.mark.parametrize(("made", "status"), [(("Namespace",), 403), ((), None)])
def test_the_first_error_of_a_namespace_is_told(made: tuple[str, ...], status: int | None) -> None:
    api = Refusing(*made, status=status)
    own = namespace_module.OwnNamespace(api)
    refused = "Lease" if made else "Namespace"
    with pytest.raises(RuntimeError, match=f"no right to create a {refused}") as told:
        own.create()
    assert told.value.__notes__ == [f"namespace {own.name} was not removed: no right to delete"]
    # It is there, or may be: our exit tries again.
    assert own.exists
    namespace_module._ALIVE.discard(own)


class Api:
    """Refuses to delete, some times."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.deleted: list[str] = []

    def delete(self, path: str) -> None:
        """Raise the next error, or do it."""
        if self.errors:
            raise self.errors.pop(0)
        self.deleted.append(path)


def with_status(status: int) -> Exception:
    """An answer of the API server."""
    error = RuntimeError(status)
    error.status = status  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("errors", "deleted"),
    [
        ([ConnectionError(REFUSED), with_status(503)], True),
        ([with_status(404)], False),
        ([with_status(409)], False),
    ],
)
def test_deleting_a_namespace_is_tried_again(errors: list[Exception], deleted: bool) -> None:
    api = Api(*errors)
    namespace_module.delete_namespace(api, "x")
    assert api.deleted == ["/api/v1/namespaces/x"] * deleted


@pytest.mark.parametrize(
    "errors", [[with_status(403)], [ConnectionError(REFUSED)] * 3], ids=["forbidden", "away"]
)
def test_a_namespace_that_stays_is_an_error(errors: list[Exception]) -> None:
    api = Api(*errors)
    with pytest.raises(type(errors[0])):
        namespace_module.delete_namespace(api, "x")
    assert (api.errors, api.deleted) == ([], [])
