"""Frozen, validated description of a run, its data in data_schema.py. Field names are those of the files in configs/."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    model_validator,
)

from mora.families import Family, families
from mora.families.base import Targets
from mora.families.mora import Groups
from mora.frozen import FrozenModel

from .data_schema import TaskData, UuidData
from .model_schema import Model, Rank


class Train(FrozenModel):
    """One optimisation. `global_batch_size` counts sequences; the learning rate is a pure function of the step.

    The length is given by `epochs` or by `max_steps`, the other one is null. `shorten_by` divides it and the warm-up: a
    whole schedule in less time, as searches run it; `stop_step` ends the long one early.
    """

    global_batch_size: PositiveInt  # sequences per update
    epochs: PositiveInt | None  # passes over the data; null if max_steps says the length
    max_steps: PositiveInt | None  # updates; null if epochs says the length
    shorten_by: PositiveInt = 1  # divides length and warm-up, so that a search runs a whole schedule
    stop_step: PositiveInt | None  # ends the run early without changing the schedule
    schedule: Literal["linear", "cosine", "constant"]  # of the learning rate after warm-up
    warmup_steps: NonNegativeInt  # updates until the learning rate reaches its peak
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)]  # last learning rate over the peak
    weight_decay: NonNegativeFloat  # AdamW's
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]  # AdamW's
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]  # AdamW's
    adam_eps: PositiveFloat  # AdamW's
    max_grad_norm: PositiveFloat  # gradients are clipped to this norm
    log_every_steps: PositiveInt  # how often the log is written; every step is in it
    checkpoint_every_steps: PositiveInt  # updates between checkpoints

    def total_steps(self, samples: int) -> int:
        """Optimizer updates of the whole schedule: max_steps, or the epochs laid end to end in batches of equal size."""
        if self.max_steps is not None:
            return math.ceil(self.max_steps / self.shorten_by)
        assert self.epochs is not None
        return math.ceil(self.epochs * samples / self.global_batch_size / self.shorten_by)

    @property
    def length(self) -> str:
        """The setting that gives it."""
        given = f"epochs={self.epochs}" if self.max_steps is None else f"max_steps={self.max_steps}"
        return f"task.train.{given}" + (f", shorten_by={self.shorten_by}" if self.shorten_by > 1 else "")

    @property
    def warmup(self) -> int:
        """Updates until the first peak of the rate: warmup_steps, shortened as the run is."""
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
    tasks: list[str]
    at_steps: list[PositiveInt]  # updates after which the tasks are scored, besides the last
    batch_size: PositiveInt  # documents scored at once
    loss_every_steps: PositiveInt  # updates between measurements of the loss


LrGrid = list[PositiveFloat] | dict[Rank, list[PositiveFloat]]


class Task(FrozenModel):
    name: str
    result_version: PositiveInt
    operator: Literal["auto", "truncation", "sharing", "decouple", "rotation"]
    data: TaskData
    train: Train
    evaluation: Evaluation
    lr_grid: dict[Literal["fft", "lora_like", "mora", "mora_rotation"], LrGrid]
    restart_every_steps: PositiveInt | None = None  # of shorter runs than the paper's; null: the method's own
    restart_warmup_steps: NonNegativeInt | None = None
    overflow: Literal["drop", "fold"] | None = None  # of MoRA's blocks, for a model whose modules differ much in size


if TYPE_CHECKING:
    AnyFamily = Family
else:
    AnyFamily = Annotated[Union[tuple(families().values())], Field(discriminator="kind")]  # noqa: UP007  as many as there are


class Restart(FrozenModel):
    """Every `every_steps` updates the adapter is merged into the base weights and starts again from its first state.

    warmup_steps: the learning rate then climbs from 0 to its schedule. schedule: "jagged", the schedule goes on underneath;
    "official_hf", a new cosine over the steps that are left begins at the last rate. groups: the kinds of a sharing
    operator, one after the other, or null. merge_rounding: from the exact sum to the dtype of the base. stale_masters:
    the optimizer's copy of the adapter is left as it was and comes back with the next update, as in the official code
    under DeepSpeed.
    """

    every_steps: PositiveInt  # updates between restarts
    warmup_steps: NonNegativeInt  # updates in which the learning rate climbs back
    schedule: Literal["jagged", "official_hf"]  # jagged: the schedule continues; official_hf: a new cosine
    groups: Annotated[list[Groups], Field(min_length=1)] | None  # kinds that a sharing operator goes through
    merge_rounding: Literal["nearest", "stochastic"]  # from the exact sum to the dtype of the base
    stale_masters: bool  # leave the optimizer's copy as it was: the official bug


class Method(FrozenModel):
    name: str
    result_version: PositiveInt
    trains: bool
    lr_grid: Literal["fft", "lora_like", "mora"] | None
    adapter: AnyFamily | None
    restart: Restart | None
    config: str | None = None  # of peft: the path that its settings were read from

    @property
    def label(self) -> str:
        """As run ids have it: of peft, with its kind."""
        return self.name if self.adapter is None else self.adapter.label(self.name)

    @property
    def has_rank(self) -> bool:
        """Whether r says how large it is; a method of PEFT's may have something else, which its settings say."""
        return self.adapter is not None and self.adapter.has_rank

    @property
    def step_family(self) -> str:
        """A name that methods share whose steps cost the same."""
        return self.name if self.adapter is None else self.adapter.step_family


class Scale(FrozenModel):
    name: Literal["smoke", "lite", "mid", "paper"]
    precision: Literal["fp32", "bf16"]  # of weights and compute; what trains has fp32 masters
    results_dir: str  # folder of the result JSON


class Hardware(FrozenModel):
    """Where and how a run is spread.

    micro_batch_size: sequences of one rank in one pass. micro_batch_tokens: instead of it, the most padded tokens of a pass.
    gradient_checkpointing: backward computes every layer again from its input instead of keeping what is in it.
    parallel: "auto" is none for one process, zero1 where an adapter trains, zero3 for full fine-tuning. offload: the
    optimizer of ZeRO, and at stage 3 the weights, on the CPU. rendezvous: host:port of the first node, for several; "slurm",
    the first of the job's.
    """

    name: str
    device: Literal["auto", "cpu", "cuda"]  # auto: the first GPU, or the CPU if there is none
    cuda_graphs: bool  # capture steps of a shape that recurs as one CUDA graph
    micro_batch_size: PositiveInt | None  # sequences of one rank in one pass; null: its whole share
    micro_batch_tokens: PositiveInt | None = None  # instead: most padded tokens of a pass
    gradient_checkpointing: bool = False  # compute layers again in backward: less memory, more time
    processes: PositiveInt = 1  # of one node
    nodes: PositiveInt = 1  # how many machines
    parallel: Literal["auto", "none", "ddp", "zero1", "zero2", "zero3"] = "auto"  # how ranks share the work
    offload: bool = False  # ZeRO's optimizer, and at stage 3 the weights, on the CPU
    rendezvous: str | None = None  # host:port of the first node; slurm: the first of the job

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes

    @property
    def captures_graphs(self) -> bool:
        """Not beside gradient checkpointing, which sets a random state anew for dropout: no graph may do so in a capture."""
        return self.cuda_graphs and not self.gradient_checkpointing


class Tracker(FrozenModel):
    """Where the log goes besides log.jsonl, which is always whole. `mode` is of W&B."""

    kind: Literal["none", "tensorboard", "wandb"]
    project: str | None = None
    mode: Literal["online", "offline"] | None = None


class RunConfig(FrozenModel):
    """Everything that one run needs. Raises pydantic.ValidationError with every wrong field named."""

    task: Task
    method: Method
    scale: Scale
    model: Model
    hardware: Hardware
    tracker: Tracker = Tracker(kind="none")
    r: Rank | None
    lr: PositiveFloat | None
    seed: NonNegativeInt

    _n_samples: int | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        train, data = self.task.train, self.task.data
        if self.r is not None and not self.method.has_rank:
            why = "has no rank" if self.method.adapter is None else "takes its size from method.config"
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
        """Training sequences, once they are known: uuid's from its pairs, the others' after preparation."""
        return self.task.data.pairs if isinstance(self.task.data, UuidData) else self._n_samples

    @property
    def knows_steps(self) -> bool:
        """Whether total_steps can be asked."""
        return self.n_samples is not None or self.task.train.max_steps is not None

    def with_samples(self, n: int) -> RunConfig:
        """The same run, whose number of training sequences is now known. Equal run id.

        Raises: ValueError where the schedule does not fit into the steps that follow.
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
            )
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

    @property
    def parallel(self) -> str:
        """How the ranks share the work: none, ddp, zero1, zero2 or zero3."""
        if self.hardware.parallel != "auto":
            return self.hardware.parallel
        if self.hardware.world_size == 1:
            return "none"
        return "zero1" if self.method.adapter is not None else "zero3"

    @property
    def total_steps(self) -> int:
        """Optimizer updates of the schedule. Raises: RuntimeError before the number of sequences is known."""
        if not self.knows_steps:
            raise RuntimeError(f"the steps of {self.task.name} are known after its data are prepared: with_samples(n)")
        return self.task.train.total_steps(self.n_samples or 0)

    @property
    def last_step(self) -> int:
        """Where the run ends: the schedule's end, or stop_step if that comes first."""
        return min(self.total_steps, self.task.train.stop_step or self.total_steps)

    @property
    def trains_rest(self) -> bool:
        """Pretraining: whatever carries no adapter trains too (embeddings, head, norms)."""
        return getattr(self.task.data, "kind", None) == "pretrain"

    @property
    def micro_batch_size(self) -> int:
        """Sequences of one rank in one pass; without a setting, all that it has to do in a step."""
        return self.hardware.micro_batch_size or self.task.train.global_batch_size // self.hardware.world_size

    def lr_grid(self) -> list[float]:
        """The learning rates the paper searched for this task, method and rank (at lite scale: ours)."""
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
        """The rank as it is printed everywhere, `Model.rank_text`; None for a method without one."""
        return None if self.r is None else self.model.rank_text(self.r)

    def lora_alpha(self) -> float:
        """max(16, R / 2) at the rank R that r stands for, with the alpha / r ratio kept (Table 5: 16 at 8, 128 at 256)."""
        assert self.r is not None
        paper_rank = self.model.stands_for(self.r)
        return max(16, paper_rank / 2) * self.r / paper_rank

    @property
    def rank_pattern(self) -> dict[str, int]:
        """The kinds of modules whose rank is not r, but the model's cap for them."""
        return {name: cap for name, cap in self.model.rank_caps.items() if self.r is not None and cap < self.r}

    @property
    def target_modules(self) -> Targets:
        """What carries adapters; none without one."""
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
