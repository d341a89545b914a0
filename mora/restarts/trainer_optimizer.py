"""The model and the Trainer's optimizer as a restart sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .layers import Adapted
from .optimizer import ParameterGroup, TorchRestartEngine
from .restart import RestartEngine

ADAM = (torch.optim.Adam, torch.optim.AdamW)


def restart_engine(model: nn.Module, optimizer: Any, layers: list[Adapted]) -> RestartEngine:
    """Return the model with plain torch's optimizer, or with DeepSpeed's.

    Raises:
        ValueError: A restart does not know the optimizer's state, or one parameter group mixes adapters with the rest.
    """
    while not isinstance(optimizer, torch.optim.Optimizer) or type(optimizer).__module__.startswith("accelerate"):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or type(optimizer).__module__.startswith("deepspeed"):
            break
        optimizer = inner
    adapter = [p for layer in layers for p in layer.adapter.values()]
    if type(optimizer).__module__.startswith("deepspeed"):
        return _deepspeed(model, optimizer, adapter)
    _check_adam(optimizer)
    return TorchRestartEngine(model, optimizer, adapter)


def _check_adam(optimizer: Any) -> None:
    if not isinstance(optimizer, ADAM):
        raise ValueError(
            f"RestartCallback: optim: the state of {type(optimizer).__module__}.{type(optimizer).__qualname__} is not known "
            "here; use optim='adamw_torch' or 'adamw_torch_fused'. In a DeepSpeed configuration leave \"optimizer\" out"
        )


def _deepspeed(model: nn.Module, zero: Any, adapter: list[nn.Parameter]) -> RestartEngine:
    """Return the model with DeepSpeed's optimizer. Raises ValueError as `restart_engine` does."""
    from .zero import ZeroRestartEngine

    stages = {"DeepSpeedZeroOptimizer": (1, zero_groups), "DeepSpeedZeroOptimizer_Stage3": (3, stage3_groups)}
    if type(zero).__name__ not in stages:
        raise ValueError(
            f"RestartCallback: DeepSpeed runs its {type(zero).__name__}; restarts know ZeRO-1, 2 and 3, in fp32 or with "
            '"bf16": {"enabled": true}'
        )
    stage, groups_of = stages[type(zero).__name__]
    _check_adam(zero.optimizer)
    names = {p: name for name, p in model.named_parameters()}
    of_adapter = set(adapter)
    groups = []
    for parameters in groups_of(zero):
        kinds = {p in of_adapter for p in parameters}
        if len(kinds) > 1:
            other = next(names[p] for p in parameters if p not in of_adapter)
            raise ValueError(
                f"RestartCallback: {other} trains in one parameter group with the adapter, where DeepSpeed counts their "
                "steps together: train the adapter alone, or without DeepSpeed"
            )
        groups.append(ParameterGroup({names[p]: p for p in parameters}, adapter=True in kinds))
    return ZeroRestartEngine(model, zero, groups, stage, adapter[0].device)


def zero_groups(zero: Any) -> list[list[nn.Parameter]]:
    return list(zero.bit16_groups)


def stage3_groups(zero: Any) -> list[list[nn.Parameter]]:
    groups: list[list[nn.Parameter]] = [[] for _ in zero.optimizer.param_groups]
    for i, parameters in enumerate(zero.fp16_groups):
        groups[zero.sub_group_to_group_id[i]] += parameters
    return groups
