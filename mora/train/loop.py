"""The training loop, top to bottom: rate -> micro steps -> clip and update -> restart? -> log -> checkpoint -> evaluate."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mora.config.schema import RunConfig
from mora.restarts.restart import describe

from . import watchdog
from .checkpoint import latest_step
from .checkpoint_writer import CheckpointWriter
from .distributed import RankShard, any_rank, barrier, rank, sum_over_ranks, world_size
from .failpoint import failpoint
from .interface import Engine, StepBatches
from .log import RunLog
from .progress import Progress
from .restart import RunRestarts
from .resume import resume_run, save_run
from .schedule import learning_rate
from .speed import Speed
from .stop_signal import Interrupted, StopSignal
from .tracker import start_tracker

Evaluate = Callable[[int, bool], dict[str, float]]  # takes a step, and whether it was done before this process began


class Diverged(RuntimeError):
    """A loss or gradient that is not finite."""


def fit(
    engine: Engine, batches: StepBatches, config: RunConfig, folder: Path, evaluate: Evaluate
) -> dict[str, float] | None:
    """Train from the latest checkpoint in `folder` to `config.last_step`.

    Dropout and batches are pure functions of (seed, step), so a resumed run repeats the uninterrupted one. All ranks call
    this function with the whole data. Each takes its share of the micro batches, and rank 0 writes `folder/log.jsonl`.

    Args:
        engine: Holds model and optimizer.
        batches: The training data.
        config: The run.
        folder: Where the log and the checkpoints are.
        evaluate: Called with each step after its update; it returns {} if nothing is due. A run that starts from a
            checkpoint first calls it with the step of the checkpoint, which was saved before that step's evaluation.

    Returns:
        The speed of this process (`Speed.facts`); None if it had no step to do.

    Raises:
        Diverged: A loss or norm is not finite; the message gives step, learning rate and last good checkpoint.
        Interrupted: A signal asked the run to stop.
        RestartFailed: A postcondition of a restart does not hold.
    """
    saved, restarts = folder / "checkpoints", RunRestarts(engine, config)
    start, text = resume_run(saved, engine, restarts, config)
    log = RunLog(folder / "log.jsonl", text, write=rank() == 0)
    with (
        start_tracker(config, folder, from_step=start, active=rank() == 0) as track,
        CheckpointWriter(saved) as writer,
    ):
        return _train(engine, RankShard(batches), config, evaluate, restarts, _Rows(log, track, writer), start)


def _train(
    engine: Engine,
    batches: RankShard,
    config: RunConfig,
    evaluate: Evaluate,
    restarts: RunRestarts,
    rows: _Rows,
    start: int,
) -> dict[str, float] | None:
    train, stop, speed = config.task.train, StopSignal(), Speed()
    engine.model.train()

    def measure(done: int, saved: bool) -> None:
        with stop.at_once(done) if saved and world_size() == 1 else nullcontext():
            metrics = evaluate(done, done == start)
        if metrics:
            rows.write()
            rows.log.add(step=done, **metrics)
            rows.write()
            engine.model.train()
            speed.start()

    if start > 0:
        measure(start, saved=True)

    progress = Progress(config, start, active=rank() == 0)
    for step in progress:
        row, done = _update(engine, batches, config, step, speed), step + 1
        watchdog.beat()
        failpoint("after_step", done)
        if restarts.due(done, config.last_step):
            rows.check([row])
            rows.writer.wait()
            row |= (facts := restarts.apply())
            if rank() == 0:
                progress.note(f"step {done}: {describe(facts)}")
        rows.log.add(**row)
        stopping = any_rank(stop.asked, engine.device)

        logging = done % train.log_every_steps == 0 or done == config.last_step
        saving = config.saves_at(done) or stopping
        if logging or saving:
            progress.say(rows.write()[-1], speed.end())
        if saving:
            save_run(rows.writer, done, engine, restarts, config, rows.log.text)
        if stopping:
            _wait_for_all(rows.writer)
            raise Interrupted(
                f"stopped by signal after step {done}; a checkpoint was saved; start the same run to resume"
            )
        measure(done, saving)
        watchdog.beat()
    _wait_for_all(rows.writer)
    return speed.facts()


def _wait_for_all(writer: CheckpointWriter) -> None:
    """Let no rank end before the last checkpoint is written: the launcher would take it for lost, and end the others."""
    writer.wait()
    barrier()


def _update(engine: Engine, batches: RankShard, config: RunConfig, step: int, speed: Speed) -> dict[str, Any]:
    """Update the model once, with the micro batches of the step, and return the row for the log."""
    train = config.task.train
    assert config.lr is not None
    lr = learning_rate(step, config.total_steps, config.lr, train, config.method.restart)
    torch.manual_seed(config.seed * 1_000_003 + step + (rank() << 40))
    loss_tokens = batches.loss_tokens(step)
    losses, padded_tokens = [], 0
    for micro in batches.micro_batches(step):
        losses.append(engine.backward(micro, loss_tokens))
        padded_tokens += micro.input_ids.numel()
    loss = sum_over_ranks(torch.stack(losses).sum())
    grad_norm = engine.step(lr, train.max_grad_norm)
    speed.add(loss_tokens, padded_tokens * world_size())
    return {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": grad_norm}


@dataclass
class _Rows:
    """Writes log rows to the file and the tracker, and raises Diverged on a loss or norm that is not finite."""

    log: RunLog
    track: Callable[[list[dict[str, Any]]], None]
    writer: CheckpointWriter

    def write(self) -> list[dict[str, Any]]:
        """Write the kept rows. If a loss or norm is not finite, raises Diverged after they are written."""
        rows = self.log.flush()
        self.track(rows)
        self.check(rows)
        return rows

    def check(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if "loss" in row and not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                self.writer.wait()
                raise Diverged(
                    f"step {row['step']}: loss {row['loss']}, gradient norm {row['grad_norm']}, lr {row['lr']:.3g}; "
                    f"last good checkpoint: step {latest_step(self.writer.folder)}"
                )
