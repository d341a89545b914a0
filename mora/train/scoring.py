"""The measurements during a run and at its end: losses, which are cheap, and the lm-eval tasks of the run's task."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from mora.config.run_id import run_id
from mora.config.schema import RunConfig
from mora.config.source import of_this_process
from mora.data import TrainingData
from mora.errors import MissingData
from mora.evaluate import samples, synthetic
from mora.evaluate.harness import Settings, evaluate_model, load_tasks
from mora.evaluate.metrics import MERGED, raised_by_merging, write_row
from mora.methods import merged, rounded
from mora.models.dtypes import DTYPES

from . import teacher_forced
from .distributed import barrier, rank, single_process_env
from .failpoint import failpoint
from .interface import Engine
from .memory import Peaks

SCORED_AT_ONCE = 250  # sequences whose logits are in memory together: 1.8 GB in bf16 at SmolLM2's vocabulary
VALIDATED_AT_ONCE = 8  # whole sequences whose logits are in memory together


class Scoring:
    """Takes the measurements that are due. It is called after every step and on resuming, and returns {} if none is due.

    All ranks make it, call it and compute the same. `seconds` is the total time of the calls.
    """

    def __init__(self, config: RunConfig, data: TrainingData, tokenizer: Any, pad_id: int, folder: Path):
        self.config, self.data, self.tokenizer, self.pad_id, self.folder = config, data, tokenizer, pad_id, folder
        self.evaluation, self.seconds = config.task.evaluation, 0.0
        self._loaded: Any = None  # the loaded tasks, until they are scored
        synthetic_data = folder / "evaluation_data" if config.scale.name == "smoke" else None
        if synthetic_data is not None and rank() == 0:
            synthetic.write(synthetic_data)
        barrier()  # or a rank would look for files that are not there yet
        self.settings = Settings(
            self.evaluation.batch_size,
            data_dir=None if synthetic_data is None else str(synthetic_data),
            metadata={"pairs": data.pairs} if data.pairs else {},
        )

    def check(self) -> None:
        """Check for missing data and unknown tasks before anything is trained. Raises ConfigError and DataError."""
        if not self.evaluation.tasks:
            return
        try:
            self._loaded = load_tasks(self.evaluation.tasks, self.tokenizer, self.settings)
        except MissingData as error:
            if self.config.scale.name != "smoke":
                raise
            raise MissingData(
                f"task.evaluation.tasks={self.evaluation.tasks}: scale smoke scores made-up rows alone, never those of "
                f"MORA_DATA_DIR: add rows of the set to mora/evaluate/synthetic.py, or leave the task out ({error})"
            ) from error

    def __call__(self, engine: Engine, peaks: Peaks, step: int, resumed: bool) -> dict[str, float]:
        """Return what is due at the step. `peaks` records the end of a stretch of training, unless the run resumes here."""
        if not self.config.measures_at(step):
            return {}
        started = time.monotonic()
        peaks.end_stretch(training=self.config.method.trains and not resumed)
        try:
            return self._scores(engine, step)
        finally:
            peaks.end_stretch(training=False)
            self.seconds += time.monotonic() - started

    def _scores(self, engine: Engine, step: int) -> dict[str, float]:
        metrics = self._losses(engine)
        if self.config.scores_at(step) and self.evaluation.tasks:
            metrics |= self._tasks(engine, step)
            _warn_of_merging(metrics, step)
        return metrics

    def _losses(self, engine: Engine) -> dict[str, float]:
        metrics = dict[str, float]()
        if self.data.validation:
            metrics |= teacher_forced.validation_loss(engine, self.data.validation, self.pad_id, VALIDATED_AT_ONCE)
        if self.data.pairs:
            at_once = min(self.evaluation.batch_size, SCORED_AT_ONCE)
            metrics |= teacher_forced.score(engine, self.data.samples, self.pad_id, at_once)
        return metrics

    def _tasks(self, engine: Engine, step: int) -> dict[str, float]:
        """Score the model, merged if `task.evaluation.merge` says so, and write the samples to the run's folder.

        Returns:
            The metrics as `task.metric`. If an adapter was merged, the merged model's losses are there as `merged_<loss>`;
            they differ from those of the model with its adapter by what merging rounds away.
        """
        failpoint("in_evaluation", step)
        if step == self.config.final_step:
            engine.computation_changed()  # so that the memory of its graphs is free for generation
        torch.cuda.empty_cache()  # has no effect without a GPU
        made_by = f"{run_id(self.config)}|{step}|{of_this_process()['fingerprint']}"  # other code, other answers
        settings = self.settings.resumable(self.folder / f"journal-{rank()}.jsonl", made_by)
        dtype = DTYPES[self.config.scale.precision]
        loaded, self._loaded = self._loaded, None
        as_in_checkpoint = merged if self.evaluation.merge else rounded
        with engine.materialized(), as_in_checkpoint(engine.model, dtype), single_process_env():
            measured = self._losses(engine) if self.evaluation.merge and isinstance(engine.model, PeftModel) else {}
            scores, logged = evaluate_model(engine.model, self.tokenizer, self.evaluation.tasks, settings, loaded)
        if rank() == 0:
            samples.write(self.folder, logged)
        return {MERGED + name: value for name, value in measured.items()} | write_row(scores)


def _warn_of_merging(metrics: dict[str, float], step: int) -> None:
    for name, (loss, after) in raised_by_merging(metrics).items():
        if rank() == 0:
            print(
                f"step {step}: {name} is {loss:.4g} with the adapter, {after:.4g} after merging, which rounds; the scores "
                "are the merged model's",
                file=sys.stderr,
                flush=True,
            )
