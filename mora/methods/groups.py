"""The parameters that train, in the groups that an optimizer needs: by learning rate, with adapters apart from the rest."""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from mora.config.schema import RunConfig
from mora.restarts.optimizer import ParameterGroup


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_groups(model: nn.Module, config: RunConfig) -> list[ParameterGroup]:
    """Return the trainable parameters, each in one group. There is at least one group, which is empty if nothing trains."""
    adapter = config.method.adapter
    prefix = model.base_model.prefix if isinstance(model, PeftModel) else None
    by_scale: dict[tuple[float, bool], dict[str, nn.Parameter]] = {}
    for name, p in trainable(model).items():
        scale = 1.0 if adapter is None else adapter.lr_scale(name, p.dim())
        is_adapter = prefix is not None and any(part.startswith(prefix) for part in name.split("."))
        by_scale.setdefault((scale, is_adapter), {})[name] = p
    return [ParameterGroup(parameters, *key) for key, parameters in by_scale.items()] or [ParameterGroup()]
