"""Turns: of all pytest-xdist workers of a run, one at a time may disrupt the cluster.

A group (``xdist_group``) says the same, but only to schedulers that look at groups, and not every
pair of pytest and pytest-xdist has those two agree on how a group is written.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A lock that the kernel gives back when its holder dies. ``path`` is an empty file."""

    path: str

    @classmethod
    def make(cls) -> Turns:
        """Turns for one run; call `remove` at its end."""
        handle, path = tempfile.mkstemp(prefix="pytest-ipvs-", suffix=".lock")
        os.close(handle)
        return cls(path=path)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for this process's turn, and keep it for the block."""
        with open(self.path, "rb") as file:  # noqa: PTH123 - the file descriptor is what counts
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def remove(self) -> None:
        """Remove the file."""
        Path(self.path).unlink(missing_ok=True)
