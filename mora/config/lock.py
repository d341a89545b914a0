"""The lock of a folder, by which processes that work in one folder keep out of each other's way."""

from __future__ import annotations

import fcntl
import os
import socket
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
        if ours and not shared:
            lock.truncate(0)
            lock.write(f"{os.getpid()} on {socket.gethostname()}")
            lock.flush()
        yield ours


def holder(folder: Path) -> str:
    """Who took the folder's lock last, alone: `PID on HOST`."""
    try:
        return (folder / ".lock").read_text() or "unknown"
    except OSError:
        return "unknown"
