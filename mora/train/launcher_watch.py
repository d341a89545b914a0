"""If a worker's launcher is killed, stop the worker as if by request: nothing else would stop it, or knows that it runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

EVERY_S = 5.0


def watch() -> None:
    """Watch the process that MORA_LAUNCHER names. Do nothing if it is not set, as under a torchrun started by hand."""
    launcher = os.environ.get("MORA_LAUNCHER", "")
    if launcher.isdigit():
        threading.Thread(target=_until_it_is_gone, args=(int(launcher), _born(int(launcher))), daemon=True).start()


def _until_it_is_gone(pid: int, born: str | None) -> None:
    while _born(pid) == born and born is not None:
        time.sleep(EVERY_S)
    print(f"mora.train: the process that started this run (pid {pid}) is gone: stopping", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)  # the loop saves a checkpoint and ends


def _born(pid: int) -> str | None:
    """Return the start time of the process, in clock ticks; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            state, *rest = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else rest[18]
