"""The frozen, validated description of a run. Its sections are in the other *_schema.py. Field names are as in configs/."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from mora.choices import OperatorChoice, Overflow
from mora.families.base import Targets
from mora.frozen import FrozenModel

from .data_schema import TaskData, UuidData
from .hardware_schema import Hardware, Scale, Tracker
from .method_schema import Method
from .model_schema import Model, Rank, Seed
from .train_schema import Evaluation, Train

LrGrid = list[PositiveFloat] | dict[Rank, list[PositiveFloat]]


class Task(FrozenModel):
    """What is learned, from which data, and how it is scored. Read by `mora/data`, `mora/train` and `mora/suite`."""

    name: str
    """The folder's name, first in run ids."""
    result_version: PositiveInt
    """Raised by hand when the task's behaviour changes. Part of the run id."""
    operator: OperatorChoice
    """The operator that method mora takes as its `method.adapter.operator`, unless that is set."""
    data: TaskData
    """The training data; `kind` chooses the recipe of `mora/data`."""
    train: Train
    """The optimisation."""
    evaluation: Evaluation
    """The scores."""
    lr_grid: dict[Literal["fft", "lora_like", "mora", "mora_rotation"], LrGrid]
    """Search space of the learning rate for each kind of method, or for each of its ranks on LLaMA-2-7B: the nearest
    counts. Without `lr`, its middle. Read by `mora/suite`. Not part of the run id."""
    restart_every_steps: PositiveInt | None = None
    """What relora and remora take as `method.restart.every_steps`, for runs shorter than the paper's; null: 2,000."""
    restart_warmup_steps: NonNegativeInt | None = None
    """What they take as `method.restart.warmup_steps`; null: 50, but at most 5% of the interval."""
    overflow: Overflow | None = None
    """What method mora takes as `method.adapter.overflow`, for a model whose modules differ much in size; null: drop."""


class RunConfig(FrozenModel):
    """Everything that one run needs.

    Raises:
        pydantic.ValidationError: If a field is wrong; it names all of them.
    """

    task: Task
    """What is learned."""
    method: Method
    """What trains."""
    scale: Scale
    """How large the replication is."""
    model: Model
    """The base model."""
    hardware: Hardware
    """Where it runs."""
    tracker: Tracker = Tracker(kind="none")
    """Where the log goes, too."""
    r: Rank | None
    """The LoRA rank, or the rank of the LoRA whose parameter count MoRA matches. `none` and `fft` take none."""
    lr: PositiveFloat | None
    """Peak learning rate. Without it: the one that a search of this cell chose, else the middle of the grid; printed."""
    seed: Seed
    """Seeds the initialisation of the adapter, the order of the data, and dropout."""

    _n_samples: int | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        train, data = self.task.train, self.task.data
        if self.r is not None and not self.method.has_rank:
            why = (
                "has no rank"
                if self.method.adapter is None
                else "takes its size from method.config, or from method.adapter.settings"
            )
            raise ValueError(f"r={self.r}: method {self.method.name} {why}; leave r out")
        if self.r is None and self.method.has_rank:
            raise ValueError(f"r is missing: method {self.method.name} needs one, for example r=8")
        if not self.method.trains and self.lr is not None:
            raise ValueError(f"lr={self.lr}: method {self.method.name} trains nothing; leave lr out")
        if isinstance(data, UuidData) and data.pairs < train.global_batch_size:
            raise ValueError(
                f"task.data.pairs={data.pairs} is less than task.train.global_batch_size={train.global_batch_size}: "
                "lower the batch or make more pairs"
            )
        self._check_hardware()
        if self.method.trains and self.knows_steps:
            self._check_steps()
        return self

    def _check_steps(self) -> None:
        train = self.task.train
        if train.warmup >= self.total_steps:
            raise ValueError(
                f"task.train.warmup_steps={train.warmup_steps}: the run has only {self.total_steps} steps; lower it or "
                f"train longer than {train.length}"
            )
        _check_restart(self.method, self.total_steps, train.length)

    @property
    def n_samples(self) -> int | None:
        """Return the number of training sequences, or None until it is known.

        Task uuid has its pairs; other tasks know it after preparation.
        """
        return self.task.data.pairs if isinstance(self.task.data, UuidData) else self._n_samples

    @property
    def knows_steps(self) -> bool:
        """Return whether total_steps is known."""
        return self.n_samples is not None or self.task.train.max_steps is not None

    def with_samples(self, n: int) -> RunConfig:
        """Return the same run, with the same run id, whose number of training sequences `n` is now known.

        Raises:
            ValueError: There are fewer than in one batch, or the schedule does not fit into the steps that they make.
        """
        batch = self.task.train.global_batch_size
        if n < batch:
            raise ValueError(f"task.train.global_batch_size={batch}: the data have only {n} sequences; lower the batch")
        known = self.model_copy()
        known._n_samples = n
        known._check_steps()
        return known

    def _check_hardware(self) -> None:
        hardware, batch = self.hardware, self.task.train.global_batch_size
        if hardware.micro_batch_size and hardware.micro_batch_tokens:
            raise ValueError(
                f"hardware.micro_batch_size={hardware.micro_batch_size} and hardware.micro_batch_tokens="
                f"{hardware.micro_batch_tokens}: set one of them, the other to null"
                + ("; without tokens, hardware.padding_free=false too" if hardware.padding_free else "")
            )
        if hardware.padding_free:
            self._check_padding_free()
        share, ranks = (hardware.micro_batch_size or 1) * hardware.world_size, hardware.world_size
        if batch % share:
            several = f" x {ranks} ranks" if ranks > 1 else ""
            raise ValueError(
                f"task.train.global_batch_size={batch} is not divisible by "
                f"hardware.micro_batch_size={hardware.micro_batch_size or 1}{several}: choose a divisor"
            )
        if hardware.parallel == "none" and ranks > 1:
            raise ValueError(f"hardware.parallel=none: {ranks} ranks need ddp, zero1, zero2 or zero3")
        if hardware.nodes > 1 and hardware.rendezvous is None:
            raise ValueError(
                f"hardware.nodes={hardware.nodes}: every node must know the first one; set hardware.rendezvous=HOST:PORT"
            )

    def _check_padding_free(self) -> None:
        if self.hardware.micro_batch_tokens is None:
            raise ValueError(
                "hardware.padding_free=true: how many tokens may a row have? Set hardware.micro_batch_tokens, 4096 say, "
                "and hardware.micro_batch_size=null; or padding_free=false"
            )
        if self.hardware.gradient_checkpointing:
            raise ValueError(
                "hardware.padding_free=true: layers that are computed again in backward would not know where a sequence "
                "ends; set one of the two, hardware.padding_free=false or hardware.gradient_checkpointing=false"
            )
        if getattr(self.task.data, "packing", None) == "isolated":
            raise ValueError(
                "hardware.padding_free=true and task.data.packing=isolated: the sequences are packed already; set "
                "one of the two, hardware.padding_free=false or task.data.packing=none"
            )

    @property
    def parallel(self) -> str:
        """Return how the processes share the work: none, ddp, zero1, zero2 or zero3."""
        if self.hardware.parallel != "auto":
            return self.hardware.parallel
        if self.hardware.world_size == 1:
            return "none"
        return "zero1" if self.method.adapter is not None else "zero3"

    @property
    def total_steps(self) -> int:
        """Return the number of updates of the schedule. Raises RuntimeError before the number of sequences is known."""
        if not self.knows_steps:
            raise RuntimeError(f"the steps of {self.task.name} are known after its data are prepared: with_samples(n)")
        return self.task.train.total_steps(self.n_samples or 0)

    @property
    def last_step(self) -> int:
        """Return the update at which the run ends: the schedule's last, or stop_step if that comes first."""
        return min(self.total_steps, self.task.train.stop_step or self.total_steps)

    @property
    def final_step(self) -> int:
        """Return the step of the final scores: `last_step`, or 0 if nothing trains."""
        return self.last_step if self.method.trains else 0

    def scores_at(self, step: int) -> bool:
        """Return whether the model is scored after this update: at `task.evaluation.at_steps` and at `final_step`."""
        return step in self.task.evaluation.at_steps or step == self.final_step

    def saves_at(self, step: int) -> bool:
        """Return whether a checkpoint is written after this update: every `checkpoint_every_steps`, and before scoring.

        Scoring may take minutes; without tasks, as in a search, it is quick.
        """
        scored = self.scores_at(step) and bool(self.task.evaluation.tasks)
        return scored or step % self.task.train.checkpoint_every_steps == 0

    def measures_at(self, step: int) -> bool:
        """Return whether anything is measured after this update: the scores, or, every `loss_every_steps`, the losses."""
        return self.scores_at(step) or step % self.task.evaluation.loss_every_steps == 0

    def next_measured(self, done: int) -> int:
        """Return the first update after `done`, and not after `final_step`, at which something is measured."""
        every = self.task.evaluation.loss_every_steps
        later = [step for step in (*self.task.evaluation.at_steps, self.final_step) if step > done]
        return min((done // every + 1) * every, *later)

    @property
    def trains_rest(self) -> bool:
        """Return whether what carries no adapter (embeddings, head, norms) trains too, as in pretraining."""
        return getattr(self.task.data, "kind", None) == "pretrain"

    @property
    def micro_batch_size(self) -> int:
        """Return the number of sequences of one process in one pass; by default its whole share of an update."""
        return self.hardware.micro_batch_size or self.task.train.global_batch_size // self.hardware.world_size

    def lr_grid(self) -> list[float]:
        """Return the task's search space for the method and rank (at scale paper, the paper's); [] if nothing trains."""
        if self.method.lr_grid is None:
            return []
        adapter, key = self.method.adapter, self.method.lr_grid
        keys = [key] if adapter is None else adapter.search_spaces(key)
        grid = next(self.task.lr_grid[key] for key in keys if key in self.task.lr_grid)
        if isinstance(grid, list):
            return grid
        paper_rank = self.model.stands_for(self.r or 1)
        return grid[min(grid, key=lambda r: abs(math.log(r / paper_rank)))]

    @property
    def rank_text(self) -> str | None:
        """Return the rank as it is printed everywhere, `Model.rank_text`; None for a method without one."""
        return None if self.r is None else self.model.rank_text(self.r)

    def lora_alpha(self) -> float:
        """Return alpha such that alpha / r equals max(16, R / 2) / R, where R is the paper's rank that r stands for.

        Table 5 of the paper has alpha 16 at r=8 and 128 at r=256.
        """
        assert self.r is not None
        paper_rank = self.model.stands_for(self.r)
        return max(16, paper_rank / 2) * self.r / paper_rank

    @property
    def rank_pattern(self) -> dict[str, int]:
        """Return, for the kinds of modules whose rank is not r but the model's cap, that cap."""
        return {name: cap for name, cap in self.model.rank_caps.items() if self.r is not None and cap < self.r}

    @property
    def target_modules(self) -> Targets:
        """Return the modules that carry adapters; none for a method without one."""
        return [] if self.method.adapter is None else self.method.adapter.modules


def _check_restart(method: Method, total_steps: int, length: str) -> None:
    restart = method.restart
    if restart is None:
        return
    if method.adapter is None:
        raise ValueError(
            f"method.restart: {method.name} has no adapter whose update could be added to the base weights"
        )
    method.adapter.check_restarts(method.name, restart.groups)  # type: ignore[arg-type]
    if restart.every_steps >= total_steps:
        raise ValueError(
            f"method.restart.every_steps={restart.every_steps}: the run has only {total_steps} steps ({length}) and "
            "would never restart; lower it with method.restart.every_steps=N"
        )
    if restart.warmup_steps >= restart.every_steps:
        raise ValueError(
            f"method.restart.warmup_steps={restart.warmup_steps} leaves no step at the full rate before the next restart "
            f"(method.restart.every_steps={restart.every_steps}): lower it"
        )
