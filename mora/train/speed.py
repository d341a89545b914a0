"""The speed of the training steps."""

from __future__ import annotations

import statistics
import time


class Speed:
    """The speed of the steps, measured over stretches. The time between stretches does not count."""

    def __init__(self) -> None:
        self._stretches: list[tuple[float, float, float]] = []
        self.start()

    def start(self) -> None:
        """Begin a stretch. A stretch that was not ended is discarded, since an evaluation interrupted it."""
        self._clock, self._steps, self._tokens, self._padded = time.perf_counter(), 0, 0, 0

    def add(self, tokens: int, padded: int) -> None:
        """Count a step in which `tokens` tokens carry a loss, and the model is given `padded` tokens, with padding."""
        self._steps += 1
        self._tokens += tokens
        self._padded += padded

    def end(self) -> float:
        """End the stretch and begin the next; return its tokens per second."""
        seconds = time.perf_counter() - self._clock
        self._stretches.append((seconds / self._steps, self._tokens / seconds, self._padded / self._steps))
        self.start()
        return self._stretches[-1][1]

    def facts(self) -> dict[str, float] | None:
        """Return medians over the stretches.

        They are `step_s`, `tokens_per_s`, and a step's `padded_tokens`; `fastest_s` is the least `step_s` of any stretch.
        """
        if not self._stretches:
            return None
        step_s, tokens_per_s, padded = (statistics.median(values) for values in zip(*self._stretches, strict=True))
        fastest_s = min(self._stretches)[0]
        return {"step_s": step_s, "fastest_s": fastest_s, "tokens_per_s": tokens_per_s, "padded_tokens": padded}
