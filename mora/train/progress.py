"""Progress of a run: a bar in a terminal, a line per minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from mora.config.schema import RunConfig

EVERY_S = 60.0


class Progress:
    """Counts the steps from `start` on. It shows nothing unless `active`, which only one of several ranks is."""

    def __init__(self, config: RunConfig, start: int, active: bool):
        self.config, self.start = config, start
        self._lines = active and not sys.stderr.isatty()
        self._began = self._said = time.monotonic()
        hidden = None if active else True  # None: hidden if the output is not a terminal
        self._bar = tqdm(
            range(start, config.last_step), initial=start, total=config.last_step, disable=hidden, unit="step"
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self._bar)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text)

    def say(self, row: dict[str, Any], tokens_per_s: float) -> None:
        """Show a step. `row` is the step's row of the log."""
        shown = facts(self.config, row, tokens_per_s)
        self._bar.set_postfix(shown)
        now = time.monotonic()
        if self._lines and now - self._said >= EVERY_S:
            done, last = row["step"], self.config.last_step
            left = (now - self._began) * (last - done) / (done - self.start)
            words = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {done}/{last}: {words}, {tqdm.format_interval(left)} left", flush=True)
            self._said = now


def facts(config: RunConfig, row: dict[str, Any], tokens_per_s: float) -> dict[str, str]:
    """Return what is shown beside the step: loss, learning rate, speed, restarts so far, and the next evaluation."""
    done, last = row["step"], config.last_step
    shown = {"loss": f"{row['loss']:.4f}", "lr": f"{row['lr']:.2e}", "tokens/s": f"{tokens_per_s:,.0f}"}
    if (restart := config.method.restart) is not None:
        every = restart.every_steps
        shown["restarts"] = f"{min(done, last - 1) // every} of {(last - 1) // every}"
    if done < last:
        shown["evaluation at"] = str(config.next_measured(done))
    return shown
