"""The training loop, top to bottom: rate -> micro steps -> clip and update -> restart? -> log -> checkpoint -> evaluate."""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mora.config.run_id import run_id
from mora.config.schema import RunConfig
from mora.config.source import of_this_process
from mora.errors import ConfigError, DamagedFileError

from . import checkpoint, watchdog
from .distributed import RankShard, all_gather_value, any_rank, barrier, rank, sum_over_ranks, world_size
from .failpoint import failpoint
from .interface import Engine, Steps
from .log import RunLog
from .progress import Progress
from .restart import Restarts, describe
from .schedule import learning_rate
from .tracker import start_tracker

Evaluate = Callable[[int, bool], dict[str, float]]  # takes a step, and whether it was done before this process began


class Diverged(RuntimeError):
    """A loss or gradient that is not finite."""


class Interrupted(KeyboardInterrupt):
    """A signal (SIGTERM or Ctrl-C) stopped the run: during training after a checkpoint, elsewhere at once.

    It derives from KeyboardInterrupt so that `except Exception` in an evaluation does not catch it.
    """


def fit(engine: Engine, batches: Steps, config: RunConfig, folder: Path, evaluate: Evaluate) -> dict[str, float] | None:
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
    saved, restarts = folder / "checkpoints", Restarts(engine, config)
    start, text = _resume(saved, engine, restarts, config)
    log = RunLog(folder / "log.jsonl", text, write=rank() == 0)
    with start_tracker(config, folder, from_step=start, active=rank() == 0) as track:
        return _train(engine, RankShard(batches), config, evaluate, restarts, _Rows(log, track, saved), start)


def _train(
    engine: Engine,
    batches: RankShard,
    config: RunConfig,
    evaluate: Evaluate,
    restarts: Restarts,
    rows: _Rows,
    start: int,
) -> dict[str, float] | None:
    train, stop, speed = config.task.train, _StopSignal(), Speed()
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
        if restarts.due(done):
            rows.check([row])
            row |= (facts := restarts.apply(done))
            if rank() == 0:
                progress.note(f"step {done}: {describe(facts)}")
        rows.log.add(**row)
        stopping = any_rank(stop.asked, engine.device)

        due = done % train.log_every_steps == 0 or done == config.last_step
        # Scoring may take minutes, so a checkpoint comes before it. At the end, scoring without tasks is quick.
        scored = config.scores_at(done) and (done < config.last_step or bool(config.task.evaluation.tasks))
        saving = done % train.checkpoint_every_steps == 0 or scored or stopping
        if due or saving:
            progress.say(rows.write()[-1], speed.end())
        if saving:
            _save(rows.checkpoints, done, engine, restarts, config, rows.log.text)
        if stopping:
            raise Interrupted(
                f"stopped by signal after step {done}; a checkpoint was saved; start the same run to resume"
            )
        measure(done, saving)
        watchdog.beat()
    return speed.facts()


def _update(engine: Engine, batches: RankShard, config: RunConfig, step: int, speed: Speed) -> dict[str, Any]:
    """Update the model once, with the micro batches of the step, and return the row for the log."""
    train = config.task.train
    assert config.lr is not None
    lr = learning_rate(step, config.total_steps, config.lr, train, config.method.restart)
    torch.manual_seed(config.seed * 1_000_003 + step + (rank() << 40))
    loss_tokens = batches.loss_tokens(step)
    losses, padded_tokens = [], 0
    for micro in batches.step(step):
        losses.append(engine.backward(micro, loss_tokens))
        padded_tokens += micro.input_ids.numel()
    loss = sum_over_ranks(torch.stack(losses).sum())
    grad_norm = engine.step(lr, train.max_grad_norm)
    speed.add(loss_tokens, padded_tokens * world_size())
    return {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": grad_norm}


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


@dataclass
class _Rows:
    """Writes log rows to the file and the tracker, and raises Diverged on a loss or norm that is not finite."""

    log: RunLog
    track: Callable[[list[dict[str, Any]]], None]
    checkpoints: Path

    def write(self) -> list[dict[str, Any]]:
        """Write the kept rows. If a loss or norm is not finite, raises Diverged after they are written."""
        rows = self.log.flush()
        self.track(rows)
        self.check(rows)
        return rows

    def check(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if "loss" in row and not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                raise Diverged(
                    f"step {row['step']}: loss {row['loss']}, gradient norm {row['grad_norm']}, lr {row['lr']:.3g}; "
                    f"last good checkpoint: step {checkpoint.latest_step(self.checkpoints)}"
                )


def _save(folder: Path, done: int, engine: Engine, restarts: Restarts, config: RunConfig, log: str) -> None:
    """Save everything that the next steps depend on, but data and dropout, which are functions of the step.

    No rank goes on or ends before the checkpoint is written, or other ranks would wait for it in vain.
    """
    code = of_this_process()["fingerprint"]
    of_run = {
        "restart": restarts.state_dict(),
        "run_id": run_id(config),
        "source": code,
        "log": log,
        "ranks": world_size(),
    }
    state = engine.state_dict() | of_run
    if rank() == 0:
        checkpoint.save(folder, done, state)
    barrier()


def _resume(folder: Path, engine: Engine, restarts: Restarts, config: RunConfig) -> tuple[int, str]:
    """Load the newest intact checkpoint, if there is one; return the number of steps done, and their log.

    A checkpoint holds whole tensors, so the number of ranks may change unless each rank draws random numbers of its own
    (dropout). Except at scale smoke, the code must be the same; else no single commit would have made the result.

    Raises:
        DamagedFileError: The checkpoint is of another run or of other code.
        ConfigError: The ranks see different checkpoints, the checkpoint lacks a field, or dropout forbids another number
            of ranks.
    """
    state = checkpoint.load_latest(folder)
    start = 0 if state is None else state["step"]
    if len(set(all_gather_value(start))) > 1:
        raise ConfigError(
            f"the ranks find checkpoints of steps {all_gather_value(start)} in {folder}: they must share the folder"
        )
    if state is not None:
        if missing := {"run_id", "source", "restart", "log", "ranks"} - state.keys():
            raise ConfigError(
                f"{folder} holds a checkpoint without {', '.join(sorted(missing))}, of another version of the code or of "
                "something else: remove the folder to start over"
            )
        if state["run_id"] != run_id(config):
            raise DamagedFileError(
                f"{folder} holds a checkpoint of {state['run_id']}, not of {run_id(config)}: start the changed run with "
                "run.py, which gives it its own folder"
            )
        if (before := state["ranks"]) != world_size() and (drops := _dropout(config)):
            raise ConfigError(
                f"{folder} holds a checkpoint of {before} ranks, now there are {world_size()}, and {drops}: each rank draws "
                f"its own masks, so the run would differ; resume with {before}, or remove the folder to start over"
            )
        code = of_this_process()["fingerprint"]
        if state["source"] != code and config.scale.name != "smoke":
            raise DamagedFileError(
                f"{folder} holds a checkpoint made by other code (fingerprint {state['source']}, now {code}): resume "
                "with the commit that it was started from, or remove the folder to start over"
            )
        restarts.load_state_dict(state["restart"])
        engine.load_state_dict(state)
        restarts.resume(start)
    return start, "" if state is None else state["log"]


def _dropout(config: RunConfig) -> str | None:
    """Return the method's setting for dropout, as text; None if it has no dropout."""
    dropouts = config.method.adapter.dropouts if config.method.adapter else {}
    return next((f"method.adapter.{name}={value}" for name, value in dropouts.items()), None)


class _StopSignal:
    """Remembers SIGTERM and SIGINT until the step is over."""

    def __init__(self) -> None:
        self.asked = False
        self._evaluated: int | None = None
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._remember)

    @contextmanager
    def at_once(self, done: int) -> Iterator[None]:
        """Context manager: a signal raises Interrupted at once, even if it came before.

        It is for the evaluation of a step whose checkpoint is saved, since whoever sends a signal will not wait for
        minutes. It is only for a single process: if one of several ranks stopped, the others would wait for it.
        """
        self._evaluated = done
        try:
            if self.asked:
                self._remember()
            yield
        finally:
            self._evaluated = None

    def _remember(self, *_: Any) -> None:
        self.asked = True
        if self._evaluated is not None:
            raise Interrupted(
                f"stopped by signal after step {self._evaluated}, in its evaluation; a checkpoint and the answers so far "
                "were saved; start the same run to resume"
            )
