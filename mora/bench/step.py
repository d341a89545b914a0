"""Time and peak memory of a forward and backward pass: all methods of a scenario in turn, in one process, in rounds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from mora.adapter import kernels

from .models import SHAPES, Case, build_base, dtype_on, trainable_parameters, weights_of, with_method

WARM_UP = 3

SIDE = 8192  # of the large matrix product whose speed counts as the peak
FROZEN_BASE = Case("floor")
BAR = (  # the cases that have bars, each with the LoRA of its r, and decouple, whose time section 4 states
    FROZEN_BASE,
    Case("lora", 8),
    Case("mora", 8, "rotation"),
    Case("mora", 8, "sharing"),
    Case("mora", 8, "decouple"),
    Case("lora", 256),
    Case("mora", 256, "sharing"),
)
SMALL = (*BAR[:4], Case("mora", 8, "rotation", form="fused"), Case("mora", 8, "sharing", form="fused"))
ALL = (
    *BAR,
    Case("mora", 256, "rotation"),
    Case("lora", 8, stock=True),
    Case("mora", 8, "rotation", stock=True),
    Case("mora", 8, "rotation", form="reference"),
    Case("mora", 8, "sharing", form="reference"),
    Case("dora", 8),
    Case("lora", 8, checkpointed=True),
    Case("mora", 8, "rotation", checkpointed=True),
    Case("mora", 256, "sharing", checkpointed=True),
)


@dataclass(frozen=True)
class Scenario:
    """A model shape, a batch of B sequences of T tokens, and the methods compared on it."""

    shape: str
    batch_size: int
    length: int
    cases: tuple[Case, ...]


def scenarios(extent: str) -> list[Scenario]:
    """Return the scenarios of "smoke" (CPU, seconds), "quick" (the bars, minutes), "small" or "full".

    "small" has the bars of models up to 1.5B and takes a minute.
    """
    if extent == "smoke":
        return [
            Scenario(
                "tiny",
                2,
                32,
                (
                    FROZEN_BASE,
                    Case("lora", 2),
                    Case("mora", 2, "rotation"),
                    Case("mora", 2, "sharing"),
                    Case("mora", 2, "sharing", checkpointed=True),
                ),
            )
        ]
    if extent == "small":
        return [
            Scenario("smollm2_135m", 100, 72, SMALL),
            Scenario("qwen25_coder_0b5", 50, 72, SMALL),
            Scenario("qwen25_coder_1b5", 16, 256, SMALL),
        ]
    if extent == "quick":
        return [Scenario("llama2_7b", 8, 1024, BAR), Scenario("smollm2_135m", 100, 72, BAR)]
    ranks = tuple(
        case for r in (1, 32, 128) for case in (Case("lora", r), Case("mora", r, "rotation" if r == 1 else "sharing"))
    )
    return [
        Scenario("llama2_7b", 8, 1024, ALL),
        Scenario("smollm2_135m", 100, 72, ALL),
        Scenario("llama2_7b", 32, 256, BAR),
        Scenario("llama2_7b", 2, 4096, BAR),
        Scenario("llama_1b3", 8, 1024, BAR),
        Scenario("llama2_7b", 8, 1024, (FROZEN_BASE, *ranks)),
    ]


def measure(scenario: Scenario, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return the scenario and, by case, what `in_turn` has measured."""
    dtype = dtype_on(device)
    base = build_base(scenario.shape, device, dtype)
    tokens = random_tokens(scenario, device)
    return {
        "shape": scenario.shape,
        "batch_size": scenario.batch_size,
        "length": scenario.length,
        "model_flop": model_flop(scenario),
        "cases": in_turn({"": base}, scenario.cases, tokens, device, rounds),
    }


def in_turn(
    bases: Mapping[str, LlamaForCausalLM], cases: Sequence[Case], tokens: Tensor, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """Return one dict per case: what it is, and the milliseconds of every round and activation bytes, or the error.

    `bases` are by `Case.base`; the model of a case shares the weights of its base. `tokens` are (batch_size, length).
    """
    results: dict[Case, dict[str, Any]] = {}
    steps: dict[Case, Callable[[], None]] = {}
    for case in cases:
        model = with_method(bases[case.base], case)
        results[case] = asdict(case) | {"name": case.name, "trainable": trainable_parameters(model), "ms": []}
        steps[case] = forward_and_backward(model, tokens, case)
        try:
            for _ in range(WARM_UP):
                results[case]["activation_bytes"] = _peak_of(steps[case], device)
        except torch.OutOfMemoryError:
            results[case]["error"] = "out of memory"
            del steps[case], model
            gc.collect()
            torch.cuda.empty_cache()
    for _ in range(rounds):
        for case, step in steps.items():
            results[case]["ms"].append(milliseconds(step, device))
    for result in results.values():
        print(f"  {_line(result)}", flush=True)
    return list(results.values())


def model_flop(scenario: Scenario) -> int:
    """Return the FLOP of the frozen model's forward pass and input gradients.

    These are 4 per weight and token, and 6 L H T^2 per sequence for causal attention.
    """
    shape, tokens = SHAPES[scenario.shape], scenario.batch_size * scenario.length
    attention = 6 * shape["num_hidden_layers"] * shape["hidden_size"] * scenario.length**2 * scenario.batch_size
    return 4 * weights_of(scenario.shape) * tokens + attention


def product_tflops(device: torch.device) -> float | None:
    """Return the TFLOP/s of a large bf16 matrix product, the peak to which utilisation refers; None without a GPU."""
    if device.type != "cuda":
        return None
    a, b = torch.randn(2, SIDE, SIDE, device=device, dtype=torch.bfloat16)
    ms = statistics.median(milliseconds(lambda: torch.mm(a, b), device) for _ in range(20))
    return round(2 * SIDE**3 / ms / 1e9, 1)


def random_tokens(scenario: Scenario, device: torch.device) -> Tensor:
    """Return random tokens (B, T)."""
    shape = scenario.batch_size, scenario.length
    return torch.randint(SHAPES[scenario.shape]["vocab_size"], shape, device=device)


def forward_and_backward(model: nn.Module, tokens: Tensor, case: Case) -> Callable[[], None]:
    """Return a forward and backward pass on fixed tokens. Without adapters the gradient goes to the embeddings."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]

    def step() -> None:
        inputs: dict[str, Tensor] = {"input_ids": tokens}
        if case.method == "floor":
            inputs = {"inputs_embeds": embeddings(tokens).requires_grad_()}
        with kernels.use(case.form):
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=case.stock):
                loss = model(**inputs, labels=tokens, use_cache=False).loss
            loss.backward()
        for p in model.parameters():
            p.grad = None

    return step


def _peak_of(step: Callable[[], None], device: torch.device) -> int | None:
    """Return the peak bytes beyond what was allocated before, which are activations and gradients."""
    if device.type != "cuda":
        step()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def milliseconds(step: Callable[[], Any], device: torch.device) -> float:
    """Return the milliseconds of one call, by the device's own clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start) * 1e3
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['name']:32} {result['error']}"
    ms, memory = result["ms"], result["activation_bytes"]
    size = f"{memory / 2**30:6.2f} GiB" if memory is not None else ""
    return f"{result['name']:32} {statistics.median(ms):8.1f} ms  ({min(ms):.1f} to {max(ms):.1f})  {size}"
