"""End a job in which a rank makes no progress: report the silent ranks, dump the stacks and exit.

The launcher then ends every rank. Without this, the other ranks would wait for hours in the next collective operation.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from mora.errors import ConfigError

EVERY_S = 1.0
LIMIT_S = 1800.0  # the longest time without a step, a batch of answers or a checkpoint
LEFT_BEHIND = 3  # the exit code


def limit_s() -> float:
    """Return MORA_HANG_S, by default half an hour. Raises ConfigError if it is not a number above 0."""
    given = os.environ.get("MORA_HANG_S", str(LIMIT_S))
    try:
        if (seconds := float(given)) > 0:
            return seconds
    except ValueError:
        pass
    raise ConfigError(f"MORA_HANG_S={given}: expected the seconds, above 0, that a job may hang")


class Watchdog:
    """Watches the other ranks of a run.

    Its thread writes a sign of life into the run's folder, where the other ranks find it. A rank that was stopped or lost
    gives none. A rank that hangs gives signs of life, but its work does not advance.
    """

    def __init__(self, folder: Path, rank: int, ranks: int, limit_s: float):
        self.folder, self.rank, self.ranks, self.limit_s = folder / "alive", rank, ranks, limit_s
        self._answers = _Sign(folder / f"journal-{rank}.jsonl")  # grows with every batch of answers
        self._others = [_Sign(self.folder / str(r)) for r in range(ranks)]
        self._worked, self._over = time.monotonic(), threading.Event()

    def beat(self) -> None:
        """Record that the work has advanced."""
        self._worked = time.monotonic()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mark()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def stop(self) -> None:
        self._over.set()

    def _mark(self) -> None:
        (self.folder / str(self.rank)).write_text(str(os.getpid()))

    def _watch(self) -> None:
        while not self._over.wait(min(EVERY_S, self.limit_s / 4)):
            with suppress(OSError):  # such as a full disk
                self._mark()
            quiet_s = [sign.quiet_s() for sign in self._others]
            if min(time.monotonic() - self._worked, self._answers.quiet_s()) > self.limit_s:
                self._end(quiet_s)

    def _end(self, quiet_s: list[float]) -> None:
        most_s = max(3 * EVERY_S, self.limit_s / 2)
        silent = ", ".join(f"rank {r} does not respond" for r, s in enumerate(quiet_s) if s > most_s)
        cause = silent or "every rank is alive, but one of them hangs"
        print(
            f"mora.train: rank {self.rank}: no progress for {self.limit_s:.0f} s (MORA_HANG_S): {cause}; the job "
            "ends; start it again to resume from its last checkpoint. Where it hangs:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        os._exit(LEFT_BEHIND)


class _Sign:
    """A file that is written from time to time.

    Its age is measured by this process's monotonic clock, between two looks at the file, so the clocks of other machines
    and changes of a clock do not matter.
    """

    def __init__(self, path: Path):
        self.path, self._seen, self._since = path, -1, time.monotonic()

    def quiet_s(self) -> float:
        """Return the seconds since a look found that the file had changed, or since the beginning if none has."""
        try:
            seen = self.path.stat().st_mtime_ns
        except OSError:
            seen = -1
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since


_watchdog: Watchdog | None = None  # of this process


def start(folder: Path, rank: int, ranks: int) -> None:
    """Begin to watch, unless there is only one rank. Raises ConfigError."""
    global _watchdog
    seconds = limit_s()
    if ranks > 1:
        _watchdog = Watchdog(folder, rank, ranks, seconds)
        _watchdog.start()


def beat() -> None:
    """Record that the work of this process has advanced."""
    if _watchdog is not None:
        _watchdog.beat()


def stop() -> None:
    if _watchdog is not None:
        _watchdog.stop()
