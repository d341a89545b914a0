"""What a run costs before it is started: steps and tokens, FLOPs, memory a GPU, hours, disk. No torch, no weights.

Evaluation and checkpoint writing are not in the hours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mora.config import RunConfig

from .counts import flops_per_token, frozen_adapter, number_bytes, trainable
from .memory import Memory, fitting_micro_batch, memory
from .shapes import SEQUENCES, Shape, shape_of
from .speed import rate_of


@dataclass(frozen=True)
class Length:
    """Steps and tokens of a run, and where they come from: "config", "results" or "set size". Tokens may be a bound."""

    steps: int | None
    tokens: float | None
    source: str
    at_most: bool = True


def length_of(config: RunConfig, results: Iterable[dict[str, Any]] = ()) -> Length:
    """`results`: of the same task and scale, whose own counts are taken first."""
    train, longest = config.task.train, max_length(config)
    for result in results:
        report = result.get("data", {}).get("report", {})
        if report.get("sequences") and report.get("sequence_tokens"):
            known = config if config.knows_steps else config.with_samples(report["sequences"])
            mean = report["sequence_tokens"] / report["sequences"]
            return Length(known.last_step, known.last_step * train.global_batch_size * mean, "results", at_most=False)
    if config.knows_steps:
        full = config.task.name == "c4"  # blocks of equal length
        return Length(config.last_step, config.last_step * train.global_batch_size * longest, "config", not full)
    count = SEQUENCES.get((config.scale.name, config.task.name))
    if count is None:
        return Length(None, None, "data not prepared")
    steps = config.with_samples(count).last_step
    full = config.task.name in ("biomed", "finance")  # blocks too
    return Length(steps, steps * train.global_batch_size * longest, "set size", not full)


def max_length(config: RunConfig) -> int:
    """Tokens of the longest sequence. A UUID pair: 73 characters and BOS where each is a token; at most 80 elsewhere."""
    return getattr(config.task.data, "max_length", None) or (75 if config.scale.name == "smoke" else 80)


@dataclass(frozen=True)
class Cost:
    """Of one run. `memory` at `micro_batch_size`, the largest that fits; None: not even one sequence does. On a CPU, whose
    memory and speed are not known: the micro batch that is set, and no hours.

    `gpu_hours`: of training alone. `disk`: what is left at the end; `checkpoints`: the most on the way.
    """

    steps: int | None
    tokens: float | None
    at_most: bool
    length_source: str
    flops: float | None
    trainable: int
    memory: Memory
    micro_batch_size: int | None
    gpu_hours: float | None
    rate_source: str
    disk: float
    checkpoints: float


def cost(config: RunConfig, results: Iterable[dict[str, Any]] = ()) -> Cost:
    """`results`: of the same task and scale, for the length of their data."""
    longest, length = max_length(config), length_of(config, results)
    flops = None if length.tokens is None else length.tokens * flops_per_token(config, longest)
    own, shape, on_cpu = trainable(config), shape_of(config.model), config.hardware.device == "cpu"
    micro = config.micro_batch_size if on_cpu else fitting_micro_batch(config, longest)
    needs, rate = memory(config, longest, micro or 1), None if on_cpu else rate_of(config, longest, micro or 1)
    return Cost(
        steps=length.steps,
        tokens=length.tokens,
        at_most=length.at_most,
        length_source=length.source,
        flops=flops,
        trainable=own,
        memory=needs,
        micro_batch_size=micro,
        gpu_hours=None if length.tokens is None or rate is None else length.tokens * rate.seconds / 3600,
        rate_source="not known on a CPU" if rate is None else rate.source,
        disk=_disk(config, own, shape),
        checkpoints=3 * (12 * own + needs.shadow),  # two kept and one being written
    )


def _disk(config: RunConfig, own: int, shape: Shape) -> int:
    """Of the adapter and the whole model, as far as a run leaves them: what trained is in fp32, merged layers are not."""
    if config.method.adapter is None:
        return 4 * own
    rest = shape.rest if config.trains_rest else 0
    adapter = 4 * (own - rest + frozen_adapter(config))
    if config.method.restart is None and not config.trains_rest:
        return adapter
    return adapter + number_bytes(config) * (shape.parameters - rest) + 4 * rest
