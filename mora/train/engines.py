"""The engine that a run asks for."""

from __future__ import annotations

import importlib.util

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from mora.config.schema import RunConfig
from mora.errors import ConfigError
from mora.methods import parameter_groups
from mora.models.dtypes import DTYPES

from .engine import TorchEngine
from .interface import Engine


def make_engine(model: nn.Module, config: RunConfig) -> Engine:
    """Return an engine in plain torch, or in DeepSpeed for ZeRO, unless nothing trains: then there is nothing to split.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """
    dtype, groups = DTYPES[config.scale.precision], parameter_groups(model, config)
    if config.hardware.gradient_checkpointing:
        checkpoint_layers(model)
    if not _is_zero(config):
        return TorchEngine(model, config.task.train, dtype, captures_graphs(config), groups)
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"hardware.parallel={config.parallel} needs DeepSpeed: pip install '.[deepspeed]' in the checkout, or take "
            "hardware.parallel=ddp"
        )
    from .zero import ZeroEngine

    stage = {"zero1": 1, "zero2": 2, "zero3": 3}[config.parallel]
    return ZeroEngine(model, config.task.train, dtype, groups, stage, config.hardware.offload)


def captures_graphs(config: RunConfig) -> bool:
    """Return whether the engine captures steps in CUDA graphs on a GPU.

    It never does so with the layers of an arbitrary PEFT method, which may do what cannot be captured.
    """
    adapter = config.method.adapter
    return config.hardware.captures_graphs and not _is_zero(config) and (adapter is None or adapter.captures_graphs)


def _is_zero(config: RunConfig) -> bool:
    return config.parallel.startswith("zero") and config.method.trains


def checkpoint_layers(model: nn.Module) -> None:
    """From now on, recompute each layer from its input in the backward pass, with the same dropout.

    The layers are the model's own, with their adapters. This is the non-reentrant form. The reentrant form computes no
    gradient if a layer's input needs none, which is so for the first layer with adapters.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    new_name = "activation_checkpointing_enable"
    enable = getattr(base, new_name if hasattr(base, new_name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})
