"""What this room needs of the cluster: small enough that a test can stand in for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from pytest_ipvs.ipvs.objects import EndpointSlice, Node


class WatchLike(Protocol):
    """The part of ``cluster.watch.Watch`` that is used here."""

    @property
    def open(self) -> bool:
        """Whether events can come now."""

    def __iter__(self) -> Iterator[Any]:
        """Events: ``type``, ``object``, ``received_at``."""

    def close(self) -> None:
        """End the iteration, from any thread."""


class ApiLike(Protocol):
    """The part of ``cluster.api.Api`` that is used here."""

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """One object."""

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The objects of a list."""

    def watch(self, path: str, **query: Any) -> WatchLike:
        """Events of a list; the first is LISTED, and so is one after each gap."""

    def create(self, path: str, body: Mapping[str, Any], **query: Any) -> dict[str, Any]:
        """POST."""

    def patch(self, path: str, body: object, **query: Any) -> dict[str, Any]:
        """PATCH, a merge patch unless ``kind`` says otherwise."""

    def replace(self, path: str, body: Mapping[str, Any], **query: Any) -> dict[str, Any]:
        """PUT."""

    def delete(self, path: str, **query: Any) -> dict[str, Any]:
        """DELETE."""

    def endpoint_slices_path(self) -> str:
        """The path of all slices (or Endpoints) that this server has."""

    def slices_of(self, item: Mapping[str, Any]) -> tuple[EndpointSlice, ...]:
        """Slices of one object of that path."""


class PoolLike(Protocol):
    """The part of ``cluster.nodes.NodePool`` that is used here."""

    def run(self, name: str, command: str, *args: str) -> Any:
        """Run a command on a node; the answer has rc, stdout and stderr."""

    def map(self, function: Callable[[str], Any], names: Sequence[str]) -> dict[str, Any]:
        """Call a function for each node; what can't be reached has a ``reason``."""

    def host(self, name: str) -> Any:
        """The testinfra host of a node."""

    def open(self, uri: str, label: str) -> Any:
        """The testinfra host of any URI."""


class ClusterLike(Protocol):
    """The part of ``cluster.cluster.Cluster`` that is used here."""

    @property
    def settings(self) -> Any:
        """``settings.Settings``."""

    @property
    def policy(self) -> Any:
        """``policy.Policy``."""

    @property
    def api(self) -> Any:
        """`ApiLike`."""

    @property
    def pool(self) -> Any:
        """`PoolLike`."""

    @property
    def nodes(self) -> Iterable[Node]:
        """The selected nodes."""

    def snapshot(self) -> Any:
        """``cluster.model.Snapshot``: facts by node."""


Say = Callable[[str], None]
"""Takes one line for the user, while it goes on."""


def silent(_: str) -> None:
    """Say nothing."""
