"""Decoding with unmerged adapters, one sequence at a time, by plain `generate`: each method's new tokens per second."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from mora.adapter import kernels

from .models import SHAPES, Case, build_base, dtype_on, with_method
from .step import BAR

WARM_UP_TURNS = 2


@dataclass(frozen=True)
class Plan:
    """Greedy decoding of `new_tokens` tokens after a prompt of `prompt_tokens` random tokens.

    All cases are timed in turn, `rounds` times or until `patience_s` is over.
    """

    shapes: tuple[str, ...]
    cases: tuple[Case, ...]
    prompt_tokens: int
    new_tokens: int
    rounds: int
    patience_s: float


# A turn takes about a second.
FULL = Plan(("smollm2_135m", "qwen25_coder_1b5"), BAR[:4], 32, 16, rounds=9, patience_s=45.0)
SMOKE = Plan(("tiny",), (Case("floor"), Case("lora", 2), Case("mora", 2, "sharing")), 4, 6, rounds=2, patience_s=20.0)


def measure(plan: Plan, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield each shape's cases with the seconds of every round."""
    for shape in plan.shapes:
        base = endless(shape, device)
        prompt = torch.randint(SHAPES[shape]["vocab_size"], (1, plan.prompt_tokens), device=device)
        cases = {case: asdict(case) | {"name": case.name, "seconds": []} for case in plan.cases}
        decoders = {case: _decoder(with_method(base, case).eval(), prompt, case) for case in plan.cases}
        for _ in range(WARM_UP_TURNS):
            for decode in decoders.values():
                decode(plan.new_tokens)
        started = time.perf_counter()
        for _ in range(plan.rounds):
            for case, decode in decoders.items():
                cases[case]["seconds"].append(_seconds(decode, plan.new_tokens, device))
            if time.perf_counter() - started > plan.patience_s:
                break
        result = {"shape": shape, "prompt_tokens": plan.prompt_tokens, "new_tokens": plan.new_tokens}
        yield result | {"cases": list(cases.values())}
        del base, decoders, decode
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def endless(shape: str, device: torch.device) -> LlamaForCausalLM:
    """Return a model that never ends a text, whatever its random weights write."""
    model = build_base(shape, device, dtype_on(device))
    model.generation_config.eos_token_id = None
    return model


def _decoder(model: nn.Module, prompt: Tensor, case: Case) -> Callable[[int], None]:
    mask = torch.ones_like(prompt)

    def decode(new_tokens: int) -> None:
        with kernels.use(case.form):
            text: Tensor = model.generate(  # type: ignore[operator]
                input_ids=prompt, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, use_cache=True
            )
        written = text.shape[1] - prompt.shape[1]
        if written != new_tokens:  # a rate over fewer tokens cannot be compared
            raise RuntimeError(f"{case.name}: wrote {written} tokens of {new_tokens}")

    return decode


def _seconds(decode: Callable[[int], None], new_tokens: int, device: torch.device) -> float:
    """Return the seconds that `new_tokens` take, including the forward pass of the prompt."""
    started = time.perf_counter()
    decode(new_tokens)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
