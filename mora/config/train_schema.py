"""The sections `task.train` and `task.evaluation` of a run's configuration."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mora.frozen import FrozenModel


class Train(FrozenModel):
    """One optimisation: its batches, its length, the learning rate as a function of the step, and AdamW's settings.

    The length is given by `epochs` or by `max_steps`; the other one is null. Read by `mora/train`.
    """

    global_batch_size: PositiveInt
    """Sequences per update, over all processes and micro steps."""
    epochs: PositiveInt | None
    """Passes over the data; null if `max_steps` gives the length."""
    max_steps: PositiveInt | None
    """Updates; null if `epochs` gives the length."""
    shorten_by: PositiveInt = 1
    """Divides the length and the warm-up, so that a search runs a whole schedule in less time."""
    stop_step: PositiveInt | None
    """The update after which the run ends early, without changing the schedule; null: at the schedule's end."""
    schedule: Literal["linear", "cosine", "constant"]
    """How the learning rate falls after the warm-up."""
    warmup_steps: NonNegativeInt
    """Updates in which the learning rate climbs from 0 to its peak."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)]
    """The last learning rate over the peak."""
    weight_decay: NonNegativeFloat
    """AdamW's decay of weights, decoupled from the gradient, per update and learning rate."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    """AdamW's decay of the mean of gradients, per update."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    """AdamW's decay of the mean of squared gradients, per update."""
    adam_eps: PositiveFloat
    """AdamW's term in the denominator."""
    max_grad_norm: PositiveFloat
    """The L2 norm, over all gradients of an update, above which they are scaled down to it."""
    log_every_steps: PositiveInt
    """Updates between writes of the log, which holds every update. Not part of the run id."""
    checkpoint_every_steps: PositiveInt
    """Updates between checkpoints. Not part of the run id."""

    def total_steps(self, samples: int) -> int:
        """Return the number of updates of the schedule: max_steps, or the epochs end to end in batches of equal size."""
        if self.max_steps is not None:
            return math.ceil(self.max_steps / self.shorten_by)
        assert self.epochs is not None
        return math.ceil(self.epochs * samples / self.global_batch_size / self.shorten_by)

    @property
    def length(self) -> str:
        """Return the setting that gives the length, as it is written on the command line."""
        given = f"epochs={self.epochs}" if self.max_steps is None else f"max_steps={self.max_steps}"
        return f"task.train.{given}" + (f", shorten_by={self.shorten_by}" if self.shorten_by > 1 else "")

    @property
    def warmup(self) -> int:
        """Return the number of updates until the first peak of the learning rate: warmup_steps, shortened as the run is."""
        return math.ceil(self.warmup_steps / self.shorten_by)

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError(
                f"epochs={self.epochs} and max_steps={self.max_steps}: give one of them, the other as null: "
                f"task.train.{'epochs' if self.max_steps else 'max_steps'}=null"
            )
        return self


class Evaluation(FrozenModel):
    """What scores the model, and when. Read by `mora/train/scoring.py` and, for the tasks, by `mora/evaluate`."""

    tasks: list[str]
    """Names of lm-eval tasks: ours in `mora/evaluate/tasks`, or lm-eval's own."""
    at_steps: list[PositiveInt]
    """Updates after which the tasks are scored, besides the last."""
    merge: bool = True
    """Whether the tasks score the merged model, rounded to `scale.precision`; false: the model with its adapter."""
    batch_size: PositiveInt
    """Documents scored at once. Part of the run id, because rounding depends on it."""
    loss_every_steps: PositiveInt
    """Updates between measurements of the loss on held-out sequences."""
