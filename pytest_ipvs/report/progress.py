"""Live lines for what takes long: the lab's boot, the phases of a rollout."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest


class Progress:
    """Prints "ipvs: …" lines as they come, through pytest's terminal; quiet with ``-q``.

    A pytest-xdist worker has no terminal, so its progress is not shown.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._last = ""

    def __call__(self, text: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        # The same state told twice in a row is noise: callers may poll.
        if terminal is None or text == self._last or self._config.get_verbosity() < 0:
            return
        self._last = text
        with self._uncaptured():
            terminal.ensure_newline()
            # That forgets letters of tests which came after a line of ours.
            if getattr(terminal._tw, "width_of_current_line", 0):
                terminal.write("\n")
            terminal.write_line(f"ipvs: {text}")
            terminal.flush()

    def _uncaptured(self) -> AbstractContextManager[None]:
        # A test's captured output must not swallow what its reader waits for.
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if capture is None or not capture.is_globally_capturing():
            return nullcontext()
        return capture.global_and_fixture_disabled()  # type: ignore[no-any-return]
