"""Places in a run at which a test can kill it."""

from __future__ import annotations

import os
import signal


def failpoint(point: str, step: int) -> None:
    """Kill this process if MORA_KILL_AT is point:step or point:step:rank. Tests interrupt a run in this way."""
    here = f"{point}:{step}"
    if os.environ.get("MORA_KILL_AT") in (here, f"{here}:{os.environ.get('RANK', 0)}"):
        os.kill(os.getpid(), signal.SIGKILL)
