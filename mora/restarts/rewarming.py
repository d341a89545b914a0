"""A Trainer's learning rate schedule, whatever it is, that climbs again after every restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from .schedule import RestartTiming, jagged

Schedule = Callable[[int], float]  # step -> factor of the peak learning rate


class RewarmedSchedule:
    """Lets a scheduler's learning rate climb from 0 after every restart; it stays a pure function of two counts.

    The schedule goes by the scheduler's own count of updates, restarts by the Trainer's, which also counts the updates that
    were skipped because gradients overflowed (fp16).

    Args:
        scheduler: The Trainer's, possibly in wrappers of accelerate or DeepSpeed.
        timing: When restarts are.
        done: The Trainer's count of updates.

    Raises:
        ValueError: The scheduler's rate is not a function of the step, or the scheduler has been changed so already.
    """

    def __init__(self, scheduler: Any, timing: RestartTiming, done: int):
        self._scheduler, self._timing = _unwrapped(scheduler), timing
        self._skipped = done - self._scheduler.last_epoch
        self._scheduler.lr_lambdas = [self._rewarmed(schedule) for schedule in self._scheduler.lr_lambdas]
        self._set()

    def follow(self, done: int) -> None:
        """Set the rates of the next update, after `done` updates of the Trainer's count."""
        if (skipped := done - self._scheduler.last_epoch) != self._skipped:
            self._skipped = skipped
            self._set()

    def _rewarmed(self, schedule: Schedule) -> Schedule:
        def rewarmed(step: int) -> float:
            return jagged(schedule(step), step + self._skipped, self._timing)

        rewarmed.restart_timing = self._timing  # type: ignore[attr-defined]
        return rewarmed

    def _set(self) -> None:
        scheduler = self._scheduler
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        scheduler._last_lr = [base * rate(scheduler.last_epoch) for base, rate in rates]
        for group, lr in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = lr


def _unwrapped(scheduler: Any) -> LambdaLR:
    while not isinstance(scheduler, LambdaLR):
        outer, scheduler = scheduler, getattr(scheduler, "scheduler", None)
        if scheduler is None:
            raise ValueError(
                f"lr_scheduler_type: the learning rate is set by a {type(outer).__name__}; restarts need a LambdaLR, whose "
                "rate is a function of the step: lr_scheduler_type='linear', 'cosine', 'constant', ..."
            )
    if any(hasattr(function, "restart_timing") for function in scheduler.lr_lambdas):
        raise ValueError(
            "RestartCallback: the scheduler already lets its rate climb after restarts, because an earlier train() used it "
            "or because the Trainer has two RestartCallbacks: give every train() a scheduler of its own "
            "(optimizers=(optimizer, scheduler) of a new Trainer), and the Trainer one RestartCallback"
        )
    return scheduler
