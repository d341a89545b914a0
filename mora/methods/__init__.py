"""A run's model with its method's adapter, and which parameters train. The training loop knows no method by name."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mora.config.schema import RunConfig
from mora.families.base import Size
from mora.families.tools.merging import merged, rounded

from .groups import ParameterGroup, parameter_groups, trainable
from .parameters import parameter_lines, parameter_table

__all__ = [
    "ParameterGroup",
    "merged",
    "parameter_groups",
    "parameter_lines",
    "parameter_table",
    "prepare",
    "rounded",
    "train_rest",
    "trainable",
]


def prepare(model: nn.Module, config: RunConfig) -> nn.Module:
    """Return the model with its adapter, if the method has one; what trains requires grad, the rest is frozen.

    Adapter initialisation depends on `config.seed` alone.

    Raises:
        ConfigError: A target names no linear module, or PEFT refuses the method's settings for this model.
    """
    adapter = config.method.adapter
    if adapter is None:
        return model.requires_grad_(config.method.trains)
    alpha = config.lora_alpha() if config.r is not None else None
    torch.manual_seed(config.seed)
    adapted = adapter.wrap(model, Size(config.r, alpha, config.target_modules, config.rank_pattern), config.seed)
    if config.trains_rest:
        train_rest(adapted)
    return adapted


def train_rest(model: nn.Module) -> None:
    """Train every module that carries no adapter, as pretraining does."""
    inside = {id(m) for layer in model.modules() if isinstance(layer, BaseTunerLayer) for m in layer.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for p in module.parameters(recurse=False):
                p.requires_grad_(True)
