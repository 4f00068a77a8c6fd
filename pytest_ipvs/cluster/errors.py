"""What can go wrong on the way to a cluster: each error's text is one sentence for the user."""

from __future__ import annotations


class ClusterError(Exception):
    """The cluster can't be used as it was named; no secret is ever part of the text."""


class ApiError(ClusterError):
    """The API server answered with an error.

    ``status`` is the HTTP status, ``reason`` the API's word ("NotFound", "Conflict" …),
    ``message`` what the server said, ``path`` the request's path without host.
    """

    def __init__(
        self, status: int, reason: str, message: str, path: str, *, sentence: str | None = None
    ) -> None:
        super().__init__(sentence or f"{path}: the API server says {status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.path = path


class NodeUnreachableError(ClusterError):
    """One node can't be reached; ``reason`` is one phrase without the node's name."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"node {node} can't be reached: {reason}")
        self.node = node
        self.reason = reason


class FactsError(ClusterError):
    """A node answered with something that is not what the facts script prints."""
