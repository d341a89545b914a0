"""The training loop, top to bottom: rate -> micro steps -> clip and update -> restart? -> log -> evaluate -> checkpoint."""

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

from mora.config.compose import ConfigError
from mora.config.run_id import run_id
from mora.config.schema import RunConfig

from . import checkpoint
from .checkpoint import kill_point
from .distributed import OfThisRank, everywhere, on_any_rank, rank, sum_over_ranks
from .interface import Engine, Steps
from .log import RunLog
from .restart import Restarts, describe
from .schedule import learning_rate
from .tracker import start_tracker

Evaluate = Callable[[int], dict[str, float]]


class Diverged(RuntimeError):
    """A loss or gradient that is not finite."""


class Interrupted(RuntimeError):
    """SIGTERM or Ctrl-C: a checkpoint was saved."""


def fit(engine: Engine, batches: Steps, config: RunConfig, folder: Path, evaluate: Evaluate) -> dict[str, float] | None:
    """Trains from the latest checkpoint in `folder` to `config.last_step`.

    Returns the speed of this process, medians over the stretches between two log writes, evaluation left out: `step_s`,
    `tokens_per_s` (tokens with a loss), and `fastest_s`, the step_s of the fastest stretch; None where it had no step to do.

    `evaluate(step)` is asked after every update and returns {} where nothing is due. Rows go to `folder/log.jsonl`.
    Dropout is a pure function of (seed, step), as the batches are, so a resumed run repeats the uninterrupted one.

    All ranks call it with the whole data; each takes its share of the micro batches, rank 0 writes.

    Raises: Diverged with step, rate and last good checkpoint; Interrupted; RestartFailed.
    """
    train, saved = config.task.train, folder / "checkpoints"
    restarts, mine = Restarts(engine, config), OfThisRank(batches)
    start = _resume(saved, engine, restarts, config)
    log = RunLog(folder / "log.jsonl", from_step=start, write=rank() == 0)
    track = start_tracker(config, folder, from_step=start, active=rank() == 0)
    stop = _StopSignal()
    assert config.lr is not None
    engine.model.train()
    quiet = rank() > 0 or None  # None: where the output is no terminal
    progress = tqdm(range(start, config.last_step), initial=start, total=config.last_step, disable=quiet, unit="step")
    clock, tokens, first = time.perf_counter(), 0, start
    speeds: list[tuple[float, float]] = []
    for step in progress:
        lr = learning_rate(step, config.total_steps, config.lr, train, config.method.restart)
        torch.manual_seed(config.seed * 1_000_003 + step + (rank() << 40))
        loss_tokens = mine.loss_tokens(step)
        loss = sum_over_ranks(torch.stack([engine.backward(micro, loss_tokens) for micro in mine.step(step)]).sum())
        grad_norm = engine.step(lr, train.max_grad_norm)
        done = step + 1
        tokens += loss_tokens
        row = {"step": done, "loss": loss, "lr": lr, "grad_norm": grad_norm}
        kill_point("after_step", done)
        if restarts.due(done):
            _check_finite([row], checkpoint.latest_step(saved))
            row |= (facts := restarts.apply(done))
            if rank() == 0:
                progress.write(f"step {done}: {describe(facts)}")
        log.add(**row)
        stopping = on_any_rank(stop.asked, engine.device)

        due = done % train.log_every_steps == 0 or done == config.last_step
        saving = done % train.checkpoint_every_steps == 0 or done == config.last_step or stopping
        if due or saving:
            rows = log.flush()
            track(rows)
            _check_finite(rows, checkpoint.latest_step(saved))
            seconds = time.perf_counter() - clock
            speeds.append((seconds / (done - first), tokens / seconds))
            progress.set_postfix(
                loss=f"{rows[-1]['loss']:.4f}", lr=f"{lr:.2e}", tokens_per_s=f"{tokens / seconds:,.0f}"
            )
            clock, tokens, first = time.perf_counter(), 0, done
        metrics = evaluate(done)
        if metrics:
            track(log.flush())
            log.add(step=done, **metrics)
            track(log.flush())
            engine.model.train()
            clock = time.perf_counter()
        if saving:
            _save(saved, done, engine, restarts, config)
        if stopping and done < config.last_step:
            everywhere(0.0)  # rank 0 has saved: torchrun kills the others soon after the first one ends
            raise Interrupted(
                f"stopped by signal after step {done}; a checkpoint was saved, start the same run to go on"
            )
    if not speeds:
        return None
    step_s, tokens_per_s = (statistics.median(values) for values in zip(*speeds, strict=True))
    return {"step_s": step_s, "fastest_s": min(speeds)[0], "tokens_per_s": tokens_per_s}


def _save(folder: Path, done: int, engine: Engine, restarts: Restarts, config: RunConfig) -> None:
    """Everything that the next steps depend on; the data and the dropout are functions of the step."""
    state = engine.state_dict() | {"restart": restarts.state_dict(), "run_id": run_id(config)}
    if rank() == 0:
        checkpoint.save(folder, done, state)


def _resume(folder: Path, engine: Engine, restarts: Restarts, config: RunConfig) -> int:
    """Loads the newest good checkpoint, if there is one. Returns the steps that are done.

    The number of ranks may be another one than before: a checkpoint holds whole tensors.
    Raises: ConfigError where the checkpoint is of another run, or the ranks see different ones.
    """
    state = checkpoint.load_latest(folder, torch.device("cpu"))
    start = 0 if state is None else state["step"]
    if len(set(everywhere(start))) > 1:
        raise ConfigError(
            f"the ranks find checkpoints of steps {everywhere(start)} in {folder}: they must share the folder"
        )
    if state is not None:
        if state["run_id"] != run_id(config):
            raise ConfigError(
                f"{folder} holds a checkpoint of {state['run_id']}, not of {run_id(config)}: start the changed run through "
                "run.py, which gives it a folder of its own"
            )
        restarts.load_state_dict(state["restart"])
        engine.load_state_dict(state)
    return start


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
