"""What can go wrong with a run itself; each text is one sentence for the user."""

from __future__ import annotations


class RolloutError(Exception):
    """The target is not fit to be disrupted, or a disruption did not come to its end."""


class NotPossibleHere(RolloutError):  # noqa: N818 - the name says what happened
    """A scenario that this cluster has no place for; it does not apply, and nothing was changed."""


class DisruptionNotAllowed(RolloutError):  # noqa: N818 - the name says what happened
    """Something would be changed in the cluster, and nobody allowed it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} changes the cluster, expected --ipvs-allow-disruption")
