"""What a run will hold and take, from the results of runs like it, else from the plan."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from mora.config import RunConfig
from mora.planner.cost import length_of, max_length
from mora.planner.memory import memory, sequences_per_pass
from mora.planner.speed import token_time
from mora.results import STORE, RunResult

GIB = 2**30
MARGIN = 1.1  # of the memory that like runs held
SCORING = 11.0  # times the weights: scoring finance held 31.9 GiB beside 2.9 of weights
HELD = 1.33  # what a run holds over what it has allocated, where its result knows only that: 65 GiB for 49 was seen
CONTEXT_GIB = 1.0  # CUDA's own


class Timing(NamedTuple):
    """The seconds of an earlier run.

    Of a step in its fastest stretch; of the GPU for a step, if the runs that may have been side by side had equal parts
    of it; and of all that is neither training nor scoring.
    """

    steps: int
    fastest_s: float
    part_s: float
    rest_s: float


class LikeRuns:
    """Results of the same task, model, method and rank.

    For memory also of passes as large, and scored or not alike; for time also on the same GPU. What scoring takes is that
    of every method.
    """

    def __init__(self, folder: Path, device: str) -> None:
        """`device`: the GPU's name, as a result has it."""
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
        scoring_s = result.scoring_s or 0.0  # of an old result not known, and then part of the rest
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
        """Return the GiB that like runs with passes of that size held, else those of the plan or of scoring.

        `unknown_gib`: if the plan does not know the model's shape.
        """
        if held := self.held_gib.get(_memory_kind(config.model_dump(mode="json"))):
            return min(held) * MARGIN + CONTEXT_GIB  # earlier sources held more than they needed
        try:
            longest = max_length(config)
            planned = memory(config, longest, sequences_per_pass(config, longest))
        except ValueError:
            return unknown_gib
        scoring = SCORING * planned.weights if config.task.evaluation.tasks else 0.0
        return max(planned.gpu, scoring) / GIB * MARGIN + CONTEXT_GIB

    def expected_s(self, config: RunConfig, beside: int = 0) -> float | None:
        """Return the seconds that the run will take, with `beside` more on its GPU; None if its steps were never timed.

        - Training: the steps, times 1 + beside. A step takes the fastest stretch of the like runs that are nearest in
          steps. That is too long of runs that never had a GPU to themselves: it is what the plan has measured on this
          GPU if that is less, or, if it has not, the median of these runs' parts of the GPU.
        - The rest of the run: the median of those like runs.
        - Scoring: the median of runs of the same task and model that are scored, or not, as this one.
        """
        if not config.knows_steps:
            return None
        known, planned_s = self.timings.get(_kind(config.model_dump(mode="json")), []), self._planned_s(config)
        if not known and planned_s is None:
            return None
        distance = min((abs(timing.steps - config.last_step) for timing in known), default=0)
        nearest = [timing for timing in known if abs(timing.steps - config.last_step) == distance]
        part_s = statistics.median([timing.part_s for timing in nearest] or [0.0])
        lone_s = config.last_step * part_s if planned_s is None else planned_s
        training_s = min([lone_s, *(config.last_step * timing.fastest_s for timing in nearest)])
        rest_s = statistics.median([timing.rest_s for timing in nearest] or [0.0])
        scoring_s = statistics.median(self.scoring_s.get(_scored(config.model_dump(mode="json"))) or [0.0])
        return (1 + beside) * training_s + rest_s + scoring_s

    def _planned_s(self, config: RunConfig) -> float | None:
        """Return the seconds of training by the plan; None if it has not measured such steps on this GPU."""
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
    """Return the kind, the size of a pass, and whether scoring follows: what decides the memory."""
    hardware, scored = config["hardware"], bool(config["task"]["evaluation"]["tasks"])
    size = hardware.get("micro_batch_size"), hardware.get("micro_batch_tokens")
    return *_kind(config), *size, bool(hardware.get("padding_free")), scored  # an earlier result may lack the third


def _scored(config: dict[str, Any]) -> tuple:
    """Return what decides the time of scoring: the task, the model, and whether lm-eval's tasks are scored."""
    return config["task"]["name"], config["model"]["name"], bool(config["task"]["evaluation"]["tasks"])
