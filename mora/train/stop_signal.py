"""SIGTERM and Ctrl-C during training: the step ends and is saved before the run stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal (SIGTERM or Ctrl-C) stopped the run: during training after a checkpoint, elsewhere at once.

    It derives from KeyboardInterrupt so that `except Exception` in an evaluation does not catch it.
    """


class StopSignal:
    """Remembers SIGTERM and SIGINT until the step is over."""

    def __init__(self) -> None:
        self.asked = False
        self._evaluated: int | None = None
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._remember)

    @contextmanager
    def at_once(self, done: int) -> Iterator[None]:
        """Context manager: a signal raises Interrupted at once, even if it came before.

        It is for the evaluation of a step whose checkpoint is saved, since whoever sends a signal will not wait for
        minutes. It is only for a single process: if one of several ranks stopped, the others would wait for it.
        """
        self._evaluated = done
        try:
            if self.asked:
                self._remember()
            yield
        finally:
            self._evaluated = None

    def _remember(self, *_: Any) -> None:
        self.asked = True
        if self._evaluated is not None:
            raise Interrupted(
                f"stopped by signal after step {self._evaluated}, in its evaluation; a checkpoint and the answers so far "
                "were saved; start the same run to resume"
            )
