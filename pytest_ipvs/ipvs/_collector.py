"""Holding back the cyclic garbage collector while many records are made."""

from __future__ import annotations

import gc


class paused:  # noqa: N801
    """No collection of cycles within the block.

    A large table makes some 100,000 records, none of them in a cycle. Python would look through
    all of them several times meanwhile, which costs as much as making them. It looks through
    them once when the next record is made after the block. Of two threads that overlap, the
    first to end switches the collector on again: that costs time only.
    """

    __slots__ = ("_enabled",)

    def __enter__(self) -> None:
        self._enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *error: object) -> None:
        if self._enabled:
            gc.enable()
