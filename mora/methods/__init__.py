"""What a method wraps and what it trains. The training loop knows none of their names."""

from __future__ import annotations

import torch
from peft import get_peft_model
from torch import nn

from mora.config.schema import LoraAdapter, RunConfig

from . import lora, mora


def prepare(model: nn.Module, config: RunConfig) -> nn.Module:
    """The model with its adapter, if the method has one; what trains is in fp32 and requires grad, the rest is frozen.

    Adapter initialisation depends on `config.seed` alone.
    """
    adapter = config.method.adapter
    if adapter is not None:
        assert config.r is not None
        torch.manual_seed(config.seed)
        if isinstance(adapter, LoraAdapter):
            return get_peft_model(model, lora.peft_config(adapter, config.r, config.lora_alpha()))
        return get_peft_model(model, mora.peft_config(adapter, config.r))
    if config.method.trains:
        return model.float().requires_grad_(True)
    return model.requires_grad_(False)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_table(model: nn.Module) -> dict[str, int]:
    """Trainable parameters of each kind of module, named without layer numbers, largest first."""
    table: dict[str, int] = {}
    for name, p in trainable(model).items():
        kind = ".".join(part for part in name.split(".") if not part.isdigit())
        table[kind] = table.get(kind, 0) + p.numel()
    return dict(sorted(table.items(), key=lambda item: -item[1]))
