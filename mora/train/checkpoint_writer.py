"""Checkpoints that are written while training goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from . import checkpoint

SMALL = 2**28  # bytes, which are written in less than a second


class CheckpointWriter:
    """Context manager: writes the checkpoints of a run in a thread, one at a time. Leaving it waits for the last one.

    A checkpoint of full fine-tuning, 12 bytes per parameter, takes longer to hash and write than to copy from the GPU. A
    small one is written before training goes on, so that a run killed while it is scored has it. What is given to `write`
    must not change until `wait` returns.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint once the one before is written. Raises OSError if that, or a small one, was not."""
        self.wait()
        self._writing = self._thread.submit(checkpoint.save, self.folder, step, state)
        if _size(state) < SMALL:
            self.wait()

    def wait(self) -> None:
        """Return once the last checkpoint is written. Raises OSError if it was not."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def _size(state: Any) -> int:
    """Return the bytes of the tensors in nested dictionaries."""
    if isinstance(state, dict):
        return sum(map(_size, state.values()))
    return int(state.nbytes) if isinstance(state, Tensor) else 0
