"""The training loop, top to bottom: rate -> micro steps -> clip and update -> log -> evaluate -> checkpoint."""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mora.config.schema import RunConfig
from mora.data.batches import Batches

from . import checkpoint
from .checkpoint import kill_point
from .engine import TorchEngine
from .log import RunLog
from .schedule import learning_rate

Evaluate = Callable[[int], dict[str, float]]


class Diverged(RuntimeError):
    """A loss or gradient that is not finite."""


class Interrupted(RuntimeError):
    """SIGTERM or Ctrl-C: a checkpoint was saved."""


def fit(
    engine: TorchEngine, batches: Batches, config: RunConfig, folder: Path, evaluate: Evaluate
) -> dict[str, float] | None:
    """Trains from the latest checkpoint in `folder` to `config.last_step`.

    Returns the speed of this process, medians over the stretches between two log writes, evaluation left out: `step_s`,
    `tokens_per_s` (tokens with a loss); None where it had no step to do.

    `evaluate(step)` is asked after every update and returns {} where nothing is due. Rows go to `folder/log.jsonl`.
    Dropout is a pure function of (seed, step), as the batches are, so a resumed run repeats the uninterrupted one.

    Raises: Diverged with step, rate and last good checkpoint; Interrupted.
    """
    train, saved = config.task.train, folder / "checkpoints"
    state = checkpoint.load_latest(saved, engine.device)
    start = 0
    if state is not None:
        start = state["step"]
        engine.load_state_dict(state)
    log = RunLog(folder / "log.jsonl", from_step=start)
    stop = _StopSignal()
    assert config.lr is not None
    engine.model.train()
    progress = tqdm(range(start, config.last_step), initial=start, total=config.last_step, disable=None, unit="step")
    clock, tokens, first = time.perf_counter(), 0, start
    speeds: list[tuple[float, float]] = []
    for step in progress:
        lr = learning_rate(step, config.total_steps, config.lr, train)
        torch.manual_seed(config.seed * 1_000_003 + step)
        loss_tokens = batches.loss_tokens(step)
        loss = sum(engine.backward(micro, loss_tokens) for micro in batches.step(step))
        grad_norm = engine.step(lr, train.max_grad_norm)
        done = step + 1
        tokens += loss_tokens
        log.add(step=done, loss=loss, lr=lr, grad_norm=grad_norm)
        kill_point("after_step", done)

        due = done % train.log_every_steps == 0 or done == config.last_step
        saving = done % train.checkpoint_every_steps == 0 or done == config.last_step or stop.asked
        if due or saving:
            rows = log.flush()
            _check_finite(rows, checkpoint.latest_step(saved))
            seconds = time.perf_counter() - clock
            speeds.append((seconds / (done - first), tokens / seconds))
            progress.set_postfix(
                loss=f"{rows[-1]['loss']:.4f}", lr=f"{lr:.2e}", tokens_per_s=f"{tokens / seconds:,.0f}"
            )
            clock, tokens, first = time.perf_counter(), 0, done
        metrics = evaluate(done)
        if metrics:
            log.flush()
            log.add(step=done, **metrics)
            log.flush()
            engine.model.train()
            clock = time.perf_counter()
        if saving:
            checkpoint.save(saved, done, engine.state_dict())
        if stop.asked and done < config.last_step:
            raise Interrupted(
                f"stopped by signal after step {done}; a checkpoint was saved, start the same run to go on"
            )
    if not speeds:
        return None
    step_s, tokens_per_s = (statistics.median(values) for values in zip(*speeds, strict=True))
    return {"step_s": step_s, "tokens_per_s": tokens_per_s}


def _check_finite(rows: list[dict[str, Any]], last_good: int) -> None:
    for row in rows:
        if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
            raise Diverged(
                f"step {row['step']}: loss {row['loss']}, gradient norm {row['grad_norm']}, lr {row['lr']:.3g}; last good "
                f"checkpoint: step {last_good}"
            )


class _StopSignal:
    """Remembers SIGTERM and SIGINT until the step is over."""

    def __init__(self) -> None:
        self.asked = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._remember)

    def _remember(self, *_: Any) -> None:
        self.asked = True
