"""The engine that a run asks for."""

from __future__ import annotations

import importlib.util

from torch import nn

from mora.config.compose import ConfigError
from mora.config.schema import RunConfig
from mora.methods import parameter_groups

from .engine import TorchEngine
from .interface import Engine
from .model import DTYPES


def make_engine(model: nn.Module, config: RunConfig) -> Engine:
    """Plain torch, or DeepSpeed for ZeRO. Where nothing trains there is no optimizer to split.

    Raises: ConfigError where DeepSpeed is not installed.
    """
    dtype, groups = DTYPES[config.scale.precision], parameter_groups(model, config)
    if not config.parallel.startswith("zero") or not config.method.trains:
        return TorchEngine(model, config.task.train, dtype, config.hardware.cuda_graphs, groups)
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"hardware.parallel={config.parallel} needs DeepSpeed: pip install 'mora[deepspeed]', or hardware.parallel=ddp"
        )
    from .zero import ZeroEngine

    stage = {"zero1": 1, "zero2": 2, "zero3": 3}[config.parallel]
    return ZeroEngine(model, config.task.train, dtype, groups, stage, config.hardware.offload)
