"""The lock of a folder, by which processes that work in one folder keep out of each other's way."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Within, the lock is held, if that is possible: yields whether it is. Freed by the system, however the process ends.

    shared: others may share it, none may have it alone. wait: until it is free, so that True is yielded.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, kind)
            ours = True
        except BlockingIOError:
            ours = False
        yield ours
