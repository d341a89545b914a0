"""The models of the benchmarks: known shapes with random weights, and the methods applied to them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from mora.adapter import MoraConfig
from mora.adapter.kernels import Form
from mora.train.engines import checkpoint_layers

SHAPES: dict[str, dict[str, int]] = {
    "llama2_7b": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "llama_1b3": {  # the paper's: AsyLoRA's and ReLoRA's pre-training shape
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5461, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "smollm2_135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "qwen25_coder_0b5": {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    },
    "qwen25_coder_1b5": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
    },
    "tiny": {
        "vocab_size": 104, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "one_layer": {  # for compilers, which take seconds per layer
        "vocab_size": 104, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One method. If `stock`, its adapters are in fp32 under bf16 autocast, PEFT's default; else in the model's dtype.

    `checkpointed` means gradient checkpointing. `base` says how the base is quantised, if it is (`mora.bench.quantised`).
    """

    method: Literal["floor", "lora", "dora", "mora"]
    r: int = 0
    operator: Literal["auto", "rotation", "sharing", "decouple"] = "auto"
    stock: bool = False
    form: Form = "auto"
    checkpointed: bool = False
    base: str = ""

    @property
    def name(self) -> str:
        operator = self.operator if self.method == "mora" else ""
        words = [self.method, operator, f"r={self.r}" if self.r else "", "stock" if self.stock else ""]
        words += [self.form if self.form != "auto" else "", "checkpointed" if self.checkpointed else ""]
        words += [f"on {self.base}" if self.base else ""]
        return " ".join(word for word in words if word)


def dtype_on(device: torch.device) -> torch.dtype:
    """Return the dtype of the models: bf16, on a CPU fp32."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def build_base(shape: str, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """Build a Llama of that shape, with room for long sequences."""
    return build(SHAPES[shape] | {"max_position_embeddings": 8192}, device, dtype)


def build(architecture: dict[str, Any], device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """Build a frozen Llama in training mode, with random weights drawn on the device. Keys are those of LlamaConfig."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**architecture, use_cache=False))
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).train()


def twin_of(base: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return another model that shares every weight of `base`, and those modules in which bitsandbytes keeps state."""
    shared: list[Any] = [*base.parameters(), *base.buffers()]
    shared += [module for module in base.modules() if type(module).__module__.startswith("bitsandbytes.")]
    return copy.deepcopy(base, {id(x): x for x in shared})


def with_method(base: LlamaForCausalLM, case: Case, untrained: bool = False) -> nn.Module:
    """Return another model that shares every weight of `base`, with random adapters, since zeros may run faster.

    If `untrained`, it has the adapters that training starts from instead.
    """
    twin = twin_of(base)
    if case.checkpointed:
        checkpoint_layers(twin)
    if case.method == "floor":
        return twin
    config: LoraConfig | MoraConfig
    if case.method == "mora":
        config = MoraConfig(
            r=case.r, operator=case.operator, overflow="drop", target_modules="all-linear", init_weights=untrained
        )
    else:
        config = LoraConfig(
            r=case.r,
            lora_alpha=16,
            target_modules="all-linear",
            init_lora_weights=untrained,
            use_dora=case.method == "dora",
        )
    with torch.device(base.device):
        return get_peft_model(twin, config, autocast_adapter_dtype=case.stock).train()


def weights_of(shape: str) -> int:
    """Return the number of weights in all linear modules of a shape, including the head."""
    s = SHAPES[shape]
    keys = s["hidden_size"] * s["num_key_value_heads"] // s["num_attention_heads"]
    layer = 2 * s["hidden_size"] * (s["hidden_size"] + keys) + 3 * s["hidden_size"] * s["intermediate_size"]
    return s["num_hidden_layers"] * layer + s["vocab_size"] * s["hidden_size"]


def trainable_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
