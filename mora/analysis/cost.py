"""What a run costs before it is started: parameters, FLOPs, memory a GPU by component, hours, disk. No torch, no weights.

Memory is counted from what the engines keep and what autograd saves for backward; a test holds it against results/bench/.
Evaluation and checkpoint writing are not in the hours.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mora.config import RunConfig, compose
from mora.config.schema import LoraAdapter, MoraAdapter
from mora.config.source import ROOT

from .shapes import SEQUENCES, Linear, Shape, shape_of

GIB = 2**30
GPU_BYTES = 79.1 * GIB  # of an H100 80GB, as torch reports it
RESERVE = 0.08  # of it: the CUDA context, libraries, fragmentation
PEAK_FLOPS = 989e12  # of an H100 SXM, dense bf16, NVIDIA's data sheet
UTILISATION = 0.40  # assumed where nothing was measured: the frozen 7B model reaches it in docs/performance.md
LOSS_CHUNK_BYTES = 2**28  # of fp32 logits at a time, mora/train/fused_loss.py
TRAINED_HEAD = 8  # FLOPs a weight and token: forward, both gradients, and the logits once more in backward
MAX_GROUP = 8  # operator=auto: sharing up to this many inputs a group, mora/adapter/model.py
BENCH = ROOT / "results" / "bench"


@dataclass(frozen=True)
class Adapter:
    """One module's adapter: what trains, multiply-adds a token, and values a token that backward needs beyond the base's."""

    parameters: int
    products: int
    saved: float


def adapter(config: RunConfig, linear: Linear, width: int) -> Adapter:
    """Of one module of that kind. `width`: the model's hidden size."""
    k, d, r, settings = linear.in_features, linear.out_features, config.r or 0, config.method.adapter
    if isinstance(settings, LoraAdapter):
        parameters = r * (0 if settings.freeze_a else k) + r * d + (d if settings.dora else 0)
        masked = (
            1.5 * k if settings.dropout else (0 if linear.name in SHARES_INPUT else k)
        )  # a copy of x and a byte mask
        return Adapter(parameters, r * (k + d), masked + r + (2 * d if settings.dora else 0))
    assert isinstance(settings, MoraAdapter)
    operator = mora_operator(config, width)
    even = operator == "rotation"
    r_hat = square_size(k, d, r, settings.rhat_rounding, even)
    r_hat = min(r_hat, min(k, d) // 2 * 2 if even else min(k, d))
    if operator in ("truncation", "sharing"):
        return Adapter(r_hat**2, r_hat**2, min(k, r_hat))
    used = min(math.ceil(k / r_hat), math.ceil(d / r_hat))
    kept = (
        0 if linear.name in SHARES_INPUT else min(k, used * r_hat)
    )  # x, or the compressed blocks that reach the output
    return Adapter(r_hat**2, used * r_hat**2, kept)


SHARES_INPUT = ("k_proj", "v_proj", "o_proj", "up_proj")  # x is kept already, for q, for attention, for the gate


def square_size(in_features: int, out_features: int, r: int, rounding: str, even: bool) -> int:
    """As mora.adapter.operators.square_size, which would import torch; a test holds the two together."""
    area = (in_features + out_features) * r
    r_hat = math.isqrt(area) if rounding == "floor" else int(math.sqrt(area) + 0.5)
    return max(r_hat // 2 * 2, 2) if even else r_hat


def mora_operator(config: RunConfig, width: int) -> str:
    """The operator of a MoRA run, "auto" resolved."""
    settings = config.method.adapter
    assert isinstance(settings, MoraAdapter)
    assert config.r is not None
    if settings.operator != "auto":
        return settings.operator
    r_hat = square_size(width, width, config.r, settings.rhat_rounding, even=False)
    return "rotation" if width > MAX_GROUP * r_hat else "sharing"


def trainable(config: RunConfig) -> int:
    """Trainable parameters."""
    shape = shape_of(config.model)
    if config.method.adapter is None:
        return shape.parameters if config.method.trains else 0
    wrapped = [linear for linear in shape.linears if linear.name in config.method.adapter.target_modules]
    adapters = sum(adapter(config, linear, shape.hidden).parameters * linear.count for linear in wrapped)
    return adapters + (shape.rest if config.trains_rest else 0)


def flops_per_token(config: RunConfig, length: int) -> float:
    """Of forward and backward, a token in a sequence of `length`: 2 a multiply-add, causal attention counted once.

    A frozen weight has no gradient of its own: 4 a weight; a trained one 6. Gradient checkpointing: the layers once more, 2.
    """
    shape = shape_of(config.model)
    once = 2 if config.hardware.gradient_checkpointing else 0
    attention = (6 + once) * shape.layers * shape.hidden * length
    if config.method.adapter is None:
        return (6 + once) * shape.in_layers + TRAINED_HEAD * shape.head + attention
    own = sum(adapter(config, x, shape.hidden).products * x.count for x in shape.linears)
    head = (TRAINED_HEAD if config.trains_rest else 4) * shape.head
    return (4 + once) * shape.in_layers + head + (6 + once) * own + attention


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, each at its most; `shadow` lies in the CPU memory of rank 0.

    `held`: what there is of gradients before backward begins, from earlier micro batches.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    shadow: float
    held: float

    @property
    def gpu(self) -> float:
        """At the peak of a step: where backward begins, or where it has freed the activations and made all gradients."""
        return self.weights + self.optimizer + max(self.held + self.activations + self.logits, self.gradients)


def memory(
    config: RunConfig,
    length: int,
    micro_batch_size: int | None = None,
    fused: bool = True,
    chunked_loss: bool = True,
) -> Memory:
    """Of a step on sequences of `length` tokens. `fused`: liger-kernel's norms and gate. `chunked_loss`: fused_loss.py's."""
    shape, ranks, stage = shape_of(config.model), config.hardware.world_size, config.parallel
    own, wide = trainable(config), 2 if config.scale.precision == "bf16" else 4
    frozen = shape.parameters - (own if config.method.adapter is None else shape.rest if config.trains_rest else 0)
    split = {name: ranks if stage in stages else 1 for name, stages in SPLIT.items()}
    size = micro_batch_size or config.micro_batch_size
    if stage.startswith("zero"):  # DeepSpeed: trained weights and gradients in fp32, masters beside them
        weights = (wide * frozen + 4 * own) / split["weights"]
        gradients, optimizer = 4 * own / split["gradients"], 12 * own / split["optimizer"]
        held = gradients
    else:  # in bf16: gradients in bf16 until they are added up in fp32, and fp32 masters
        weights = float(wide * (frozen + own))
        gradients, optimizer = (6.0, 12.0) if wide == 2 else (4.0, 8.0)
        gradients, optimizer = gradients * own, optimizer * own
        held = 4.0 * own * _sums_held(config, size)
    tokens = size * length
    logits = _loss_bytes(config, shape, tokens, wide, chunked_loss)
    shadow = 4 * shape.in_layers if config.method.restart else 0
    return Memory(weights, gradients, optimizer, wide * tokens * _saved(config, shape, fused), logits, shadow, held)


def _sums_held(config: RunConfig, micro_batch_size: int) -> int:
    """Copies of the gradients that lie there when backward begins: the sums; and one more while a graph is captured."""
    if config.hardware.captures_graphs:
        return 2
    return int(micro_batch_size * config.hardware.world_size < config.task.train.global_batch_size)


SPLIT = {
    "optimizer": ("zero1", "zero2", "zero3"),
    "gradients": ("zero2", "zero3"),
    "weights": ("zero3",),
}  # what which stage of ZeRO divides by the ranks


def _saved(config: RunConfig, shape: Shape, fused: bool) -> float:
    """Values that backward needs, a token, over all layers, in numbers of the compute dtype.

    A layer: its two norms (x, twice as wide in fp32 where not fused), q, k, v and attention's output, gate and up (and silu
    of the gate where not fused), and what the adapters or trained weights read. liger's norm keeps x as it is, its gate the
    two factors, its rotary embedding nothing. Gradient checkpointing: every layer's input, and one layer at a time.
    """
    h, i = shape.hidden, shape.mlp
    trains_norms = config.method.adapter is None or config.trains_rest
    layer: float = (2 if fused else 4) * h + 2 * h + 2 * shape.kv + (2 if fused else 3) * i
    if config.method.adapter is None:
        layer += 2 * h + i  # inputs of q, k, v, of gate and up, and of down
    else:
        layer += sum(adapter(config, linear, h).saved for linear in shape.linears)
    if trains_norms and not fused:
        layer += 2 * h  # what their weights are multiplied with
    if config.hardware.gradient_checkpointing:
        return h * shape.layers + layer + 2 * h
    return layer * shape.layers + 2 * h


def _loss_bytes(config: RunConfig, shape: Shape, tokens: int, wide: int, chunked: bool) -> float:
    """The logits: a chunk in fp32 and its copy in the weights' dtype, and for a head that trains its gradient in fp32. Where
    no chunks are made, as under ZeRO-3, whole: the logarithms of the probabilities, their gradient and that of the logits.
    """
    whole = float(tokens * shape.vocabulary)
    if not chunked or config.parallel == "zero3":
        return whole * 12
    trained = config.method.adapter is None or config.trains_rest
    return min(LOSS_CHUNK_BYTES * 1.5, whole * 6) + 2 * wide * tokens * shape.hidden + 4 * trained * shape.head


def fitting_micro_batch(config: RunConfig, length: int) -> int | None:
    """The largest number of sequences a pass that fits and divides a rank's share; None where not even one does."""
    share = config.task.train.global_batch_size // config.hardware.world_size
    sizes = (n for n in range(config.micro_batch_size, 0, -1) if share % n == 0)
    return next((n for n in sizes if memory(config, length, n).gpu <= GPU_BYTES * (1 - RESERVE)), None)


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
class Rate:
    """FLOP/s of one GPU on a run, and whether it was measured on this kind of run."""

    flops: float
    source: str


def rate_of(config: RunConfig, without: str = "") -> Rate:
    """From results/bench: of real steps of the same shape and method, else of forward and backward alone, else assumed.

    Of several, that which is most alike: dropout, checkpointing, graphs, then the nearest rank. `without`: the name of a
    case that is to be predicted from the others.
    """
    found = [*_from_steps(config, without), *_from_passes(config)]
    if found:
        return min(found, key=lambda one: one[0])[1]
    return Rate(UTILISATION * PEAK_FLOPS, f"assumed, {UTILISATION:.0%} of {PEAK_FLOPS / 1e12:.0f} TFLOP/s")


def family(method: str) -> str:
    """The method whose step costs the same."""
    return {"lora_plus": "lora", "relora": "lora", "asylora": "lora", "remora": "mora"}.get(method, method)


def _from_steps(config: RunConfig, without: str) -> Iterator[tuple[tuple[float, ...], Rate]]:
    """Of `python -m mora.bench plan`: how unlike the case is to the run, and its speed."""
    for device, row, case in _real_steps():
        same_model = case.model.name == config.model.name and case.trains_rest == config.trains_rest
        if row["name"] == without or not same_model or family(case.method.name) != family(config.method.name):
            continue
        if isinstance(config.method.adapter, MoraAdapter):
            width = shape_of(config.model).hidden
            if mora_operator(case, width) != mora_operator(config, width):
                continue
        tokens = row["batch_size"] * row["length"] * row["micro_batches"]
        speed = flops_per_token(case, row["length"]) * tokens / statistics.median(row["step_s"])
        yield (0, _unlike(case, config), _far(case.r, config.r)), Rate(speed, f"measured, {device}, {row['name']}")


def _unlike(case: RunConfig, config: RunConfig) -> int:
    """In how many ways that change the speed of a step."""
    dropout = [bool(c.method.adapter and c.method.adapter.dropout) for c in (case, config)]
    graphs = [c.hardware.captures_graphs for c in (case, config)]
    again = [c.hardware.gradient_checkpointing for c in (case, config)]
    return sum(a != b for a, b in (dropout, graphs, again))


def _far(r: int | None, other: int | None) -> float:
    return abs(math.log((r or 1) / (other or 1)))


def _from_passes(config: RunConfig) -> Iterator[tuple[tuple[float, ...], Rate]]:
    """Of `python -m mora.bench step`, without optimizer and fused layers."""
    wanted = family(config.method.name)
    for device, scenario, case in _measured():
        if scenario["shape"] != config.model.name or case["method"] != wanted or not case["ms"] or not case["r"]:
            continue
        if case["stock"] or case["form"] != "auto":  # other ways of computing the same
            continue
        operator = case["operator"] if wanted == "mora" else "auto"
        if operator != "auto" and operator != mora_operator(config, shape_of(config.model).hidden):
            continue
        tokens = scenario["batch_size"] * scenario["length"]
        plain = config.hardware.model_copy(update={"gradient_checkpointing": case.get("checkpointed", False)})
        same = config.model_copy(update={"r": case["r"], "hardware": plain})
        speed = flops_per_token(same, scenario["length"]) * tokens / (statistics.median(case["ms"]) / 1e3)
        yield (1, 0, _far(case["r"], config.r)), Rate(speed, f"measured, {device}, r={case['r']}")


@lru_cache
def _real_steps() -> tuple[tuple[str, dict[str, Any], RunConfig], ...]:
    """(device, row, its run) of every case of `python -m mora.bench plan` that was measured."""
    found = []
    for path in sorted(BENCH.glob("plan-*.json")):
        result = json.loads(path.read_text())
        for row in result["rows"]:
            if row.get("step_s"):
                found.append((result["hardware"]["device"], row, compose(row["overrides"])))
    return tuple(found)


@lru_cache
def _measured() -> tuple[tuple[str, dict[str, Any], dict[str, Any]], ...]:
    """(device, scenario, case) of every step benchmark that there is."""
    found = []
    for path in sorted(BENCH.glob("step-*.json")) if BENCH.is_dir() else []:
        result = json.loads(path.read_text())
        for scenario in result["scenarios"]:
            found += [(result["hardware"]["device"], scenario, case) for case in scenario["cases"]]
    return tuple(found)


@dataclass(frozen=True)
class Cost:
    """Of one run. `memory` at `micro_batch_size`, the largest that fits; None: not even one sequence does.

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
    longest, length, rate = max_length(config), length_of(config, results), rate_of(config)
    flops = None if length.tokens is None else length.tokens * flops_per_token(config, longest)
    micro, own, shape = fitting_micro_batch(config, longest), trainable(config), shape_of(config.model)
    needs = memory(config, longest, micro or 1)
    merges = bool(config.method.restart) or config.trains_rest
    adapters = 0 if config.method.adapter is None else 2 * own
    return Cost(
        steps=length.steps,
        tokens=length.tokens,
        at_most=length.at_most,
        length_source=length.source,
        flops=flops,
        trainable=own,
        memory=needs,
        micro_batch_size=micro,
        gpu_hours=None if flops is None else flops / rate.flops / 3600,
        rate_source=rate.source,
        disk=adapters + (2 * shape.parameters if merges and config.method.adapter is not None else 0),
        checkpoints=3 * (12 * own + needs.shadow),  # two kept and one being written
    )
