"""The memory and the time that a run will take: from the results of runs like it, else from the plan."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mora.config import RunConfig
from mora.planner.cost import length_of, max_length
from mora.planner.gpus import GIB
from mora.planner.memory import memory, sequences_per_pass
from mora.planner.speed import token_time
from mora.results import STORE, RunResult

MARGIN = 1.1  # factor on the memory that like runs held
SCORING = 11.0  # memory of scoring, in multiples of the weights: for finance it held 31.9 GiB beside 2.9 of weights
HELD = 1.33  # memory held over memory allocated, for results that record only the latter: 65 GiB were seen for 49
CONTEXT_GIB = 1.0  # held by the CUDA context


class Timing(NamedTuple):
    """The seconds that an earlier run took.

    `fastest_s` is the time of a step in the run's fastest stretch, `part_s` the GPU time of a step if the runs that may
    have been side by side had equal parts of the GPU, and `rest_s` the time of all but training and scoring.
    """

    steps: int
    fastest_s: float
    part_s: float
    rest_s: float


class LikeRuns:
    """Results of the same task, model, method and rank.

    For memory, like runs also agree in the size of a pass and in whether they are scored; for time, in the GPU. The time
    of scoring is taken from runs of every method and rank.
    """

    def __init__(self, folder: Path, device: str) -> None:
        """`device` is the GPU's name as results record it."""
        self.device = device
        self.held_gib: dict[tuple, list[float]] = defaultdict(list)
        self.timings: dict[tuple, list[Timing]] = defaultdict(list)
        self.scoring_s: dict[tuple, list[float]] = defaultdict(list)
        for result in STORE.all(folder):
            self.add(result)

    def add(self, result: RunResult) -> None:
        if result.peak_memory_bytes:
            held = result.hardware.get("reserved_memory_bytes") or HELD * result.peak_memory_bytes
            self.held_gib[_memory_kind(result.config)].append(held / GIB)
        if not result.wall_s or result.hardware.get("device") != self.device:
            return
        scoring_s = result.scoring_s or 0.0  # old results do not record it; it is then part of the rest
        if result.scoring_s is not None:
            self.scoring_s[_scored(result.config)].append(scoring_s)
        if not result.last_step:
            return
        speed = result.speed or {"step_s": (result.wall_s - scoring_s) / result.last_step}
        rest_s = max(0.0, result.wall_s - scoring_s - result.last_step * speed["step_s"])
        part_s = speed["step_s"] / (result.hardware.get("runs_side_by_side") or 1)
        timing = Timing(result.last_step, speed.get("fastest_s", speed["step_s"]), part_s, rest_s)
        self.timings[_kind(result.config)].append(timing)

    def claim_gib(self, config: RunConfig, unknown_gib: float) -> float:
        """Return the GiB that like runs held; without like runs, what the plan says or what scoring takes, if that is more.

        It is `unknown_gib` if the plan does not know the model's shape.
        """
        if held := self.held_gib.get(_memory_kind(config.model_dump(mode="json"))):
            return min(held) * MARGIN + CONTEXT_GIB  # the least, since earlier source held more than needed
        try:
            longest = max_length(config)
            planned = memory(config, longest, sequences_per_pass(config, longest))
        except ValueError:
            return unknown_gib
        scoring = SCORING * planned.weights if config.task.evaluation.tasks else 0.0
        return max(planned.gpu, scoring) / GIB * MARGIN + CONTEXT_GIB

    def expected_s(self, config: RunConfig, beside_s: Iterable[float] = ()) -> float | None:
        """Return the seconds that the run will take; None if its steps were never timed.

        It is the sum of its training, of the rest of the run (the median of like runs), and of scoring (the median of runs
        of the same task and model that are scored if this one is, or not if it is not).

        Args:
            config: The run.
            beside_s: For each run on the same GPU, the seconds that it would still need if it had the GPU to itself.
                Runs get equal parts of a GPU. So, while this one trains, each other one takes as much of the GPU's time,
                but no more than it needs.
        """
        training_s = self.training_s(config)
        if training_s is None:
            return None
        shared_s = training_s + sum(min(left_s, training_s) for left_s in beside_s)
        rest_s = statistics.median([timing.rest_s for timing in self._nearest(config)] or [0.0])
        return shared_s + rest_s + self.scored_s(config)

    def scored_s(self, config: RunConfig) -> float:
        """Return the median of the seconds that scoring took runs of the same task and model; 0 if none was timed."""
        return statistics.median(self.scoring_s.get(_scored(config.model_dump(mode="json"))) or [0.0])

    def training_s(self, config: RunConfig) -> float | None:
        """Return the seconds that the run will train with the GPU to itself; None if its steps were never timed.

        A step takes as long as in the fastest stretch of the like runs whose number of steps is nearest. For runs that
        never had a GPU to themselves that is too long, so a smaller time replaces it: the plan's, if it was measured on
        this GPU, else the median of these runs' `part_s`.
        """
        if not config.knows_steps:
            return None
        nearest, planned_s = self._nearest(config), self._planned_s(config)
        if not nearest:
            return planned_s
        lone_s = config.last_step * statistics.median(timing.part_s for timing in nearest)
        fastest_s = config.last_step * min(timing.fastest_s for timing in nearest)
        return min(lone_s if planned_s is None else planned_s, fastest_s)

    def _nearest(self, config: RunConfig) -> list[Timing]:
        """Return the times of those like runs whose number of steps is nearest to this run's."""
        known = self.timings.get(_kind(config.model_dump(mode="json")), [])
        distance = min((abs(timing.steps - config.last_step) for timing in known), default=0)
        return [timing for timing in known if abs(timing.steps - config.last_step) == distance]

    def _planned_s(self, config: RunConfig) -> float | None:
        """Return the seconds of training by the plan; None if the plan has no measurement of such steps on this GPU."""
        length, longest = length_of(config), max_length(config)
        if length.tokens is None:
            return None
        try:
            time = token_time(config, longest, sequences_per_pass(config, longest))
        except ValueError:
            return None
        return length.tokens * length.padding * time.seconds_per_token if time.device == self.device else None


def _kind(config: dict[str, Any]) -> tuple:
    task = config["task"]
    size = (task["train"]["global_batch_size"], task["data"].get("pairs"))
    return (task["name"], config["model"]["name"], config["method"]["name"], config["r"], *size)


def _memory_kind(config: dict[str, Any]) -> tuple:
    """Return what decides the memory of a run: its kind, the size of a pass, and whether scoring follows."""
    hardware, scored = config["hardware"], bool(config["task"]["evaluation"]["tasks"])
    size = hardware.get("micro_batch_size"), hardware.get("micro_batch_tokens")
    return *_kind(config), *size, bool(hardware.get("padding_free")), scored  # older results may lack it


def _scored(config: dict[str, Any]) -> tuple:
    """Return what decides the time of scoring: the task, the model, and whether lm-eval's tasks are scored."""
    return config["task"]["name"], config["model"]["name"], bool(config["task"]["evaluation"]["tasks"])
