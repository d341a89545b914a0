"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from mora.config.schema import Train


def learning_rate(step: int, total_steps: int, peak: float, train: Train) -> float:
    """The rate of update `step` (from 0): linear warm-up to `peak`, then the schedule, down to min_lr_ratio * peak."""
    if step < train.warmup_steps:
        return peak * (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / max(1, total_steps - train.warmup_steps)
    left = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[train.schedule]
    return peak * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * left)
