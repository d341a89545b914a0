"""LoRA and MoRA on a base in bf16, 8 bits and NF4: time and memory of a step, and some steps' losses. Needs bitsandbytes.

Adapters are in fp32 under bf16 autocast, as with PEFT and the Trainer. Without autocast, adapters on an 8-bit base compute
in fp32, since PEFT casts an adapter to the dtype of the base weight only if that is a floating-point dtype.

The random weights have half the usual spread. With the usual spread, in 256 tokens 47% of the inputs of a down projection
of LLaMA-2-7B's shape exceed the threshold of bitsandbytes for outliers, which it computes apart; with half of it, none do.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from .models import SHAPES, Case, build, dtype_on, with_method
from .step import in_turn

BASES = ("bf16", "int8", "nf4")
LEARNING_RATE = 3e-4  # the paper's for both methods
SPREAD = 0.01  # standard deviation of the weights


@dataclass(frozen=True)
class Setting:
    """A shape, the (B, T) of the timed step and of the steps whose losses are kept, and the number of the latter."""

    shape: str
    timed: tuple[int, int]
    trained: tuple[int, int]
    r: int
    steps: int = 20

    @property
    def methods(self) -> tuple[Case, ...]:
        rotation, sharing = Case("mora", self.r, "rotation", stock=True), Case("mora", self.r, "sharing", stock=True)
        return Case("lora", self.r, stock=True), rotation, sharing


FULL = Setting("llama2_7b", (8, 1024), (1, 512), r=8)
SMOKE = Setting("tiny", (2, 32), (2, 32), r=2)


def measure(setting: Setting, device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the bytes of each base, and a dict per base and method: first that of `in_turn`, later with "losses" added.

    "losses" are the losses of the first `steps` steps of AdamW on one batch of random tokens, and the loss after them.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # or it says at each call that bf16 is cast to fp16
    bases, sizes = {}, {}
    for name in BASES:
        before = _allocated(device)
        bases[name] = quantised(setting.shape, name, device)
        sizes[name] = _allocated(device) - before
    cases = [replace(case, base=name) for name in BASES for case in setting.methods]
    timed, trained = (_tokens(setting.shape, size, device) for size in (setting.timed, setting.trained))
    rows = in_turn(bases, cases, timed, device, rounds)
    result = {
        "shape": setting.shape, "timed": setting.timed, "trained": setting.trained, "learning_rate": LEARNING_RATE,
        "base_bytes": sizes, "cases": rows,
    }  # fmt: skip
    yield result
    for case, row in zip(cases, rows, strict=True):
        row["losses"] = _losses(bases[case.base], case, trained, setting.steps)
        print(f"  {case.name:32} loss {row['losses'][0]:.4f} -> {row['losses'][-1]:.4f}", flush=True)
        yield result


def quantised(shape: str, how: str, device: torch.device) -> LlamaForCausalLM:
    """Return a frozen Llama whose random weights, the same for each of BASES, are rounded as `how` says.

    The head is not quantised. On a CPU "bf16" is fp32.
    """
    dtype = dtype_on(device)
    base = build(SHAPES[shape] | {"max_position_embeddings": 8192, "initializer_range": SPREAD}, device, dtype)
    if how == "bf16":
        return base
    for parent in list(base.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, _quantised(child, how, device, dtype))
    setattr(base, "is_loaded_in_4bit" if how == "nf4" else "is_loaded_in_8bit", True)  # PEFT's LoRA reads it
    gc.collect()
    return base.train()


def _quantised(linear: nn.Linear, how: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return `linear`, which has no bias, as a module of bitsandbytes with the options that QLoRA and LLM.int8 use."""
    import bitsandbytes as bnb

    sizes = linear.in_features, linear.out_features
    module: Any
    if how == "nf4":
        options: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
        module = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=dtype, device="meta", **options)
        module.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, module=module, **options)
        return module.to(device)
    module = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
    # From the CPU: what lies on the GPU already would be quantised in the first pass alone, and kept beside it.
    module.weight = bnb.nn.Int8Params(linear.weight.data.cpu(), requires_grad=False).to(device)
    module.init_8bit_state()
    return module


def _losses(base: LlamaForCausalLM, case: Case, tokens: Tensor, steps: int) -> list[float]:
    torch.manual_seed(0)
    model = with_method(base, case, untrained=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], LEARNING_RATE, weight_decay=0)
    losses = []
    for step in range(steps + 1):
        with torch.autocast(tokens.device.type, torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        losses.append(loss.detach())
        if step < steps:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return torch.stack(losses).tolist()


def _tokens(shape: str, size: tuple[int, int], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(SHAPES[shape]["vocab_size"], size, generator=generator).to(device)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0
