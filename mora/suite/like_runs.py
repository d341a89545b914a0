"""What a run will hold and take, from the results of runs like it, else from the plan."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from mora.config import RunConfig
from mora.errors import MoraError
from mora.planner.cost import cost, max_length
from mora.planner.memory import memory, sequences_per_pass
from mora.results import STORE, RunResult

GIB = 2**30
MARGIN = 1.1  # of the memory that like runs held
SCORING = 11.0  # times the weights: scoring finance held 31.9 GiB beside 2.9 of weights
HELD = 1.33  # what a run holds over what it has allocated, where its result knows only that: 65 GiB for 49 was seen
CONTEXT_GIB = 1.0  # CUDA's own


class Took(NamedTuple):
    """The seconds of an earlier run: of all that is not training, and of a step while the fewest others shared its GPU."""

    steps: int
    rest_s: float
    step_s: float
    device: str


class LikeRuns:
    """Results of the same task, model, method and rank. For memory also of passes as large, and scored or not alike."""

    def __init__(self, folder: Path) -> None:
        self.held_gib: dict[tuple, list[float]] = {}
        self.took: dict[tuple, list[Took]] = {}
        for result in STORE.all(folder):
            self.add(result)

    def add(self, result: RunResult) -> None:
        if result.peak_memory_bytes:
            held = result.hardware.get("reserved_memory_bytes") or HELD * result.peak_memory_bytes
            self.held_gib.setdefault(_memory_kind(result.config), []).append(held / GIB)
        if took := _took(result):
            self.took.setdefault(_kind(result.config), []).append(took)

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
        """Return the seconds that the run would take; None where neither a like run nor the plan knows.

        Training takes what a step of the like runs took at its fastest, or what the plan has measured of such steps on
        that GPU if it is less, since runs that always share a GPU do not show what one alone takes. `beside` more runs
        make training as many times longer. All else takes what it took the like runs. They are those nearest in steps.
        """
        if not config.knows_steps:
            return None
        planned = _measured_plan(config)
        known = self.took.get(_kind(config.model_dump(mode="json")), [])
        if not known:
            return None if planned is None else (1 + beside) * planned.seconds
        far = min(abs(took.steps - config.last_step) for took in known)
        nearest = [took for took in known if abs(took.steps - config.last_step) == far]
        training_s = config.last_step * min(took.step_s for took in nearest)
        if planned is not None and any(took.device in planned.source for took in nearest):
            training_s = min(training_s, planned.seconds)
        return statistics.median(took.rest_s for took in nearest) + (1 + beside) * training_s


def _took(result: RunResult) -> Took | None:
    if not result.wall_s or not result.last_step:
        return None
    device = result.hardware.get("device", "")
    if not result.speed:
        return Took(result.last_step, 0.0, result.wall_s / result.last_step, device)
    step_s = result.speed["step_s"]
    rest_s = max(0.0, result.wall_s - result.last_step * step_s)
    return Took(result.last_step, rest_s, result.speed.get("fastest_s", step_s), device)


class _Plan(NamedTuple):
    seconds: float
    source: str  # names the GPU


def _measured_plan(config: RunConfig) -> _Plan | None:
    """Return the seconds of training by the plan; None where its time was not measured."""
    try:
        planned = cost(config)
    except (MoraError, ValueError):
        return None
    if not planned.gpu_hours or not planned.time_source.startswith("measured"):
        return None
    return _Plan(3600 * planned.gpu_hours, planned.time_source)


def _kind(config: dict[str, Any]) -> tuple:
    task = config["task"]
    size = (task["train"]["global_batch_size"], task["data"].get("pairs"))
    return (task["name"], config["model"]["name"], config["method"]["name"], config["r"], *size)


def _memory_kind(config: dict[str, Any]) -> tuple:
    """Return the kind, the size of a pass, and whether scoring follows: what decides the memory."""
    hardware, scored = config["hardware"], bool(config["task"]["evaluation"]["tasks"])
    size = hardware.get("micro_batch_size"), hardware.get("micro_batch_tokens")
    return *_kind(config), *size, bool(hardware.get("padding_free")), scored  # an earlier result may lack the third
