"""The progress of a suite: how many runs are done, how far the running ones are, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from mora.config import RunConfig, run_id
from mora.train import log

from .launch import run_folder

EVERY_S = 60.0


class SuiteProgress:
    """Prints one line per run in progress and one for all, at most every EVERY_S seconds. `total` counts the known runs."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic):
        self.total, self.done, self._clock = total, 0, clock
        self._started = self._said = clock()
        self._begun: dict[str, tuple[float, int]] = {}

    def begin(self, config: RunConfig) -> None:
        self._begun[run_id(config)] = (self._clock(), last_row(config).get("step", 0))

    def end(self, config: RunConfig, ended_well: bool) -> None:
        self._begun.pop(run_id(config), None)
        self.done += ended_well

    def more(self, planned: int) -> None:
        """Record that `planned` runs are known and not done yet, which may raise the total."""
        self.total = max(self.total, self.done + planned)

    def say(self, running: Iterable[RunConfig]) -> None:
        if self._clock() - self._said < EVERY_S:
            return
        self._said = self._clock()
        for config in running:
            print(f"  {self.line(config)}", flush=True)
        print(f"  {self.whole()}", flush=True)

    def whole(self) -> str:
        """Return `3/12 runs, about 2 h 10 min left`; before the first run has ended, without an estimate."""
        text = f"{self.done}/{self.total} runs"
        if self.done:
            left = (self._clock() - self._started) / self.done * (self.total - self.done)
            text += f", about {duration(left)} left"
        return text

    def line(self, config: RunConfig) -> str:
        row, (began, first) = last_row(config), self._begun.get(run_id(config), (self._clock(), 0))
        if "step" not in row:
            return f"{run_id(config)}: no step yet ({duration(self._clock() - began)})"
        text = f"{run_id(config)}: step {row['step']}"
        if config.knows_steps:
            text += f"/{config.last_step}"
        if isinstance(row.get("loss"), float):
            text += f", loss {row['loss']:.3f}"
        if config.knows_steps and row["step"] > first:
            left = (self._clock() - began) / (row["step"] - first) * (config.last_step - row["step"])
            text += f", about {duration(left)} left"
        return text


def duration(seconds: float) -> str:
    """Return a duration in at most two units: `40 s`, `5 min`, `2 h 10 min`, `3 d 4 h`."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def last_row(config: RunConfig) -> dict[str, Any]:
    """Return the last row of the run's log that has a loss; {} if there is none yet."""
    path = run_folder(config) / "log.jsonl"
    rows = log.read(path) if path.is_file() else []
    return next((row for row in reversed(rows) if "loss" in row), {})
