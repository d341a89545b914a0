"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from mora.config.method_schema import Restart
from mora.config.train_schema import Train
from mora.restarts.schedule import jagged


def learning_rate(step: int, total_steps: int, peak: float, train: Train, restart: Restart | None = None) -> float:
    """Return the learning rate of update `step` (from 0): linear warm-up to `peak`, then the schedule's decay.

    The decay ends at min_lr_ratio * peak. With `restart` the rate climbs from 0 again after every restart.
    """
    if restart is None or step < restart.every_steps:
        return peak * _base(step, total_steps, train)
    if restart.schedule == "jagged":
        return peak * jagged(_base(step, total_steps, train), step, restart)
    return peak * _official_hf(step, total_steps, train, restart)


def _base(step: int, total_steps: int, train: Train) -> float:
    if step < train.warmup:
        return (step + 1) / train.warmup
    progress = (step - train.warmup) / max(1, total_steps - train.warmup)
    left = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": _cosine(progress),
    }[train.schedule]
    return train.min_lr_ratio + (1.0 - train.min_lr_ratio) * left


def _official_hf(step: int, total_steps: int, train: Train, restart: Restart) -> float:
    """Return the rate of the official code without --relora_scheduler: after a restart, a cosine from the last rate to 0.

    There the first update after a restart still has the last rate: the callback resets the scheduler, which writes a rate
    only after the next update. Here it has 0, as in a jagged schedule; all measured runs had that.
    """
    height = _base(restart.every_steps, total_steps, train)
    begin = restart.every_steps
    while True:
        after, warmup = min(step - begin, restart.every_steps), restart.warmup_steps
        left = max(1, total_steps - begin - warmup)
        rate = height * (after / warmup if after < warmup else _cosine((after - warmup) / left))
        if step < begin + restart.every_steps:
            return rate
        height, begin = rate, begin + restart.every_steps


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))
