"""Norms, rotary embedding and gates by liger-kernel's Triton kernels, for models that are built like a Llama."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from torch import nn
from transformers import PreTrainedModel

PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")


def use_fused_layers(model: PreTrainedModel) -> bool:
    """Put liger-kernel's kernels into the model if it has their parts and the package is installed.

    Llama, Mistral, Qwen2 and Qwen3 have them. `tests/gpu/test_fused_layers.py` compares the outcome with plain layers.
    """
    if importlib.util.find_spec("liger_kernel") is None or not built_as_llama(model):
        return False
    kernels = importlib.import_module("liger_kernel.transformers")
    apply = getattr(kernels, f"apply_liger_kernel_to_{model.config.model_type}", None)
    if apply is None:
        return False
    apply(model=model, rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False)
    return True


def built_as_llama(model: PreTrainedModel) -> bool:
    """Return whether every layer has two root-mean-square norms, attention by four projections, and an MLP gated by SiLU.

    A norm must multiply by its weight alone; Gemma's, for example, adds one to it.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    return all(_is_llama_layer(layer) for layer in layers)


def _is_llama_layer(layer: Any) -> bool:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    norms = [module for name, module in layer.named_children() if "norm" in name]
    return (
        {name for name, _ in layer.named_children()}
        == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and all(hasattr(attention, name) for name in PARTS)
        and all(type(getattr(mlp, name, None)) is nn.Linear for name in GATED)
        and (_is_fused(mlp) or isinstance(getattr(mlp, "act_fn", None), (nn.SiLU, type(_silu()))))
        and all(hasattr(norm, "variance_epsilon") and norm.weight.ndim == 1 for norm in norms)
    )


def _is_fused(mlp: Any) -> bool:
    """Return whether the layer's class is one of liger-kernel's."""
    return type(mlp).__module__.startswith("liger_kernel.")


def _silu() -> nn.Module:
    from transformers.activations import ACT2FN

    return ACT2FN["silu"]
