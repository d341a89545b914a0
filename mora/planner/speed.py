"""Seconds a token of a run, from what was measured on a GPU: real steps, finished runs, forward and backward alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mora.config import RunConfig
from mora.config.cached_composition import compose_cached
from mora.config.load import load
from mora.config.source import CONFIG_DIR, ROOT
from mora.errors import MoraError
from mora.padding import padded_length
from mora.results import STORE, RunResult, checked

from .counts import flops_per_token, operator_of
from .gpus import H100, Gpu

BENCH = ROOT / "results" / "bench"
RUNS = ROOT / "results" / "runs"
UTILISATION = 0.40  # assumed where nothing was measured: the frozen 7B model reaches it in docs/performance.md
EARLIER_NAMES = {"llama_1.3b": "llama_1b3"}  # of a shape in results/bench, as configs/model has it now
AGAIN = "`make bench` repeats the measurement"
STEADY = 1.1  # the longest step over the shortest; beyond it the CPU or another program held the GPU up


@dataclass(frozen=True)
class TokenTime:
    """Seconds per token on one GPU (forward, backward and update), and the measurement behind it.

    `device`: the GPU that it was measured on; empty if it was not.
    """

    seconds_per_token: float
    source: str
    device: str = ""

    @property
    def measured(self) -> bool:
        return self.source.startswith("measured")

    def on(self, gpu: Gpu) -> TokenTime:
        """Return the same time on another GPU, scaled by the peaks of both."""
        if gpu == H100:
            return self
        scaled = f"scaled by {gpu.speed:.2f}, the peaks of {gpu.name} and h100, from: {self.source}"
        return TokenTime(self.seconds_per_token / gpu.speed, scaled)


@dataclass(frozen=True)
class Measured:
    """A measured configuration on one GPU.

    Attributes:
        seconds: Per micro batch of `tokens`, in sequences of `length`, with its share of the update.
        whole: With update and fused layers.
        steady: Its steps took equally long.
        benchmark: Measured for the plan. Runs may be of earlier, slower sources.
    """

    name: str
    device: str
    config: RunConfig
    length: float
    tokens: float
    seconds: float
    steady: bool
    whole: bool
    benchmark: bool = True


def is_steady(seconds: Sequence[float]) -> bool:
    return max(seconds) <= STEADY * min(seconds)


def token_time(config: RunConfig, length: int, micro_batch_size: int, without: str = "") -> TokenTime:
    """Return the time per token by the nearest measurement of the same model, else by an assumed share of the GPU's peak.

    If another method or operator was measured, or one that trains other parts, the source says "extrapolated from"
    instead of "measured". Nearest is first the same method (restarts and learning rates aside), on its own or with all
    else that trains; then real steps before passes alone, steady before disturbed ones; then equal graphs, checkpointing,
    operator and dropout; then rank, as a ratio, benchmarks before runs, and tokens per micro batch, as a ratio.

    Checkpointing and length are corrected by the FLOPs of the base model. Rank is not: an adapter multiplies little,
    and its time hardly follows the rank (rank 256 instead of 8 costs LoRA on the 7B shape 9%, where FLOPs say 14%; MoRA
    on the small model is faster at the larger rank). If cases that are otherwise alike were measured with two sizes of
    micro batch, the time lies on a line through the nearest two, since a small model's pass has a part that fewer
    tokens do not shorten.

    Args:
        config: The run.
        length: Tokens of a sequence.
        micro_batch_size: Sequences per pass.
        without: The name of a case that is to be predicted from the others.
    """
    tokens = micro_batch_size * length
    everything = (*_real_steps(), *_runs(), *_passes())
    candidates = [m for m in everything if m.name != without and m.config.model.name == config.model.name]
    if not candidates:
        flops = flops_per_token(config, length)
        source = f"assumed, {UTILISATION:.0%} of {H100.flops / 1e12:.0f} TFLOP/s"
        return TokenTime(flops / (UTILISATION * H100.flops), source)
    candidates.sort(
        key=lambda m: (*_unlike(m, config), _far(m.config.r, config.r), not m.benchmark, _far(m.tokens, tokens))
    )
    nearest = candidates[0]
    alike = [m for m in candidates if _unlike(m, config) == _unlike(nearest, config) and m.config.r == nearest.config.r]
    seconds = _at(tokens, alike) / tokens
    work = flops_per_token(config, length, with_adapters=False)
    work /= flops_per_token(nearest.config, nearest.length, with_adapters=False)
    same_parts = (
        nearest.config.method.step_family == config.method.step_family
        and nearest.config.trains_rest == config.trains_rest
    )
    if not same_parts or operator_of(nearest.config) != operator_of(config):
        return TokenTime(seconds * work, f"extrapolated from {nearest.name}, {nearest.device}")
    return TokenTime(seconds * work, f"measured, {nearest.device}, {nearest.name}", nearest.device)


def _unlike(case: Measured, config: RunConfig) -> tuple[bool, ...]:
    """Return how a case differs from the run, the most important difference first."""
    one, other = case.config, config
    return (
        one.method.step_family != other.method.step_family,
        one.trains_rest != other.trains_rest,
        not case.whole,
        not case.steady,
        one.hardware.captures_graphs != other.hardware.captures_graphs,
        one.hardware.gradient_checkpointing != other.hardware.gradient_checkpointing,
        operator_of(one) != operator_of(other),
        _drops(one) != _drops(other),
    )


def _drops(config: RunConfig) -> bool:
    return bool(getattr(config.method.adapter, "dropout", None))


def _far(one: float | None, other: float | None) -> float:
    return abs(math.log((one or 1) / (other or 1)))


def _at(tokens: float, alike: Sequence[Measured]) -> float:
    """Return the seconds of a micro batch of so many tokens; `alike` has the nearest first."""
    near = alike[0]
    for far in alike[1:]:
        if far.tokens != near.tokens and far.length == near.length:
            a_token = (far.seconds - near.seconds) / (far.tokens - near.tokens)
            fixed = near.seconds - a_token * near.tokens
            if a_token > 0 and fixed > 0:
                return fixed + a_token * tokens
    return near.seconds / near.tokens * tokens


@lru_cache
def _real_steps() -> tuple[Measured, ...]:
    """Return every measured case of `python -m mora.bench plan`."""
    measured = []
    for path in sorted(BENCH.glob("plan-*.json")):
        measured += checked(path, _of_plan, AGAIN)
    return tuple(measured)


def _of_plan(result: dict[str, Any]) -> list[Measured]:
    return [of_row(row, result["hardware"]["device"]) for row in result["rows"] if row.get("step_s")]


def of_row(row: dict[str, Any], device: str) -> Measured:
    """Return the measurement in a row of `python -m mora.bench plan`."""
    seconds = statistics.median(row["step_s"]) / row["micro_batches"]
    config, tokens = of_equal_passes(row["overrides"]), row["batch_size"] * row["length"]
    return Measured(row["name"], device, config, row["length"], tokens, seconds, is_steady(row["step_s"]), True)


def of_equal_passes(overrides: Sequence[str]) -> RunConfig:
    """Return the configuration of a case of `python -m mora.bench plan`: its passes have one size."""
    return compose_cached(["hardware.micro_batch_tokens=null", "hardware.padding_free=false", *overrides])


@lru_cache
def _runs() -> tuple[Measured, ...]:
    """Return the finished runs that had one GPU to themselves, and whose configuration can still be read.

    Such a run was started alone and is steady, which one that another joined is not.
    """
    measured = []
    for result in STORE.all(RUNS):
        speed, hardware = result.speed, result.hardware
        alone = hardware.get("runs_side_by_side") == 1 and hardware.get("ranks") == 1
        if not speed or not alone or hardware.get("peak_memory_bytes") is None:
            continue
        try:
            config = load(result.config)
        except MoraError:
            continue
        if config.hardware.micro_batch_tokens is not None:  # passes of many sizes
            continue
        length = padded_tokens_per_sequence(result)
        passes = config.task.train.global_batch_size / config.micro_batch_size
        if not is_steady([speed["step_s"], speed.get("fastest_s", speed["step_s"])]):
            continue
        measured.append(
            Measured(
                f"run {result.run_id}", hardware["device"], config, length, config.micro_batch_size * length,
                speed["step_s"] / passes, True, True, False,
            )
        )  # fmt: skip
    return tuple(measured)


def padded_tokens_per_sequence(result: RunResult) -> float:
    """Return the tokens that the model was given for a sequence: as counted, else those of a sequence of mean length."""
    if result.speed and "padded_tokens" in result.speed:
        return result.speed["padded_tokens"] / float(result.config["task"]["train"]["global_batch_size"])
    report = result.data["report"]
    mean = math.ceil(report["sequence_tokens"] / report["sequences"])
    return float(padded_length(mean, report.get("longest", mean)))


@lru_cache
def _passes() -> tuple[Measured, ...]:
    """Return the cases of `python -m mora.bench step`: forward and backward without update, fused layers and graphs.

    Other ways of computing the same are left out.

    Raises:
        ConfigError: A shape is not in configs/model, so that its measurement would be ignored silently.
    """
    measured = []
    for path in sorted(BENCH.glob("step-*.json")):
        measured += checked(path, _of_steps, AGAIN)
    return tuple(measured)


def _of_steps(result: dict[str, Any]) -> list[Measured]:
    measured: list[Measured] = []
    if result.get("extent") == "small":  # of launches, for the most part, which the suite's runs capture in graphs
        return measured
    for scenario in result["scenarios"]:
        plain = [c for c in scenario["cases"] if c["ms"] and c["r"] and not c["stock"] and c["form"] == "auto"]
        model = EARLIER_NAMES.get(scenario["shape"], scenario["shape"])
        if not (CONFIG_DIR / "model" / f"{model}.yaml").is_file():
            raise ValueError(f"shape {model!r} has no configs/model/{model}.yaml: use a name of that folder")
        measured += [_of_pass(case, scenario | {"shape": model}, result["hardware"]["device"]) for case in plain]
    return measured


def _of_pass(case: dict[str, Any], scenario: dict[str, Any], device: str) -> Measured:
    operator = [f"method.adapter.operator={case['operator']}"] if case["method"] == "mora" else []
    checkpointed = str(case.get("checkpointed", False)).lower()
    config = compose_cached(
        [
            "task=metamath", "hardware=gpu1", f"model={scenario['shape']}", f"method={case['method']}", f"r={case['r']}",
            "method.adapter.dropout=0", *operator, "hardware.cuda_graphs=false",
            f"hardware.gradient_checkpointing={checkpointed}",
        ]
    )  # fmt: skip
    tokens, ms = scenario["batch_size"] * scenario["length"], case["ms"]
    seconds = statistics.median(ms) / 1e3
    return Measured(case["name"], device, config, scenario["length"], tokens, seconds, is_steady(ms), False)
