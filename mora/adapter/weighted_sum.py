"""Weighted sums of adapters. ΔW is linear in M, so matrices of the same operator have a sum that is an adapter, too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .config import MoraConfig
from .layer import MoraLayer
from .operators import OPERATORS, Operator

if TYPE_CHECKING:
    from .model import MoraModel

OPTIONS = ("pad", "groups", "split", "pairs", "overflow")  # fields that a configuration and its operators share


class _On(NamedTuple):
    """One adapter on one layer."""

    adapter: str
    module: str
    operator: Operator

    def field(self, name: str) -> Any:
        if name == "operator":
            return next(key for key, kind in OPERATORS.items() if kind is type(self.operator))
        return getattr(self.operator, name)


@torch.no_grad()
def add_weighted(model: MoraModel, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
    """Add a frozen adapter whose delta_weight is the weighted sum of the others', exactly: delta_weight is linear in M.

    It is on every module that one of the adapters is on. Its M is summed in fp32 and has the adapters' dtype. If anything
    fails, nothing of it is left.
    Raises: ValueError for unknown adapters, another number of weights, adapters whose operators differ, or adapters that
        train something else than M, which has no sum.
    """
    _check_summands(model, adapters, weights)
    layers = {
        name: module
        for name, module in model.model.named_modules()
        if isinstance(module, MoraLayer) and any(adapter in module.mora_M for adapter in adapters)
    }
    config = _config_of_sum(model, adapters, layers)
    active, trains = model.active_adapter, [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.peft_config[adapter_name] = config
    try:
        model.inject_adapter(model.model, adapter_name)
        for layer in layers.values():
            _set_sum(layer, adapters, weights, adapter_name)
    except BaseException:
        model.delete_adapter(adapter_name)
        model.active_adapter = active
        for parameter, trained in trains:  # PEFT freezes the active adapters first, and sets them again at the end
            parameter.requires_grad_(trained)
        raise


def _check_summands(model: MoraModel, adapters: Sequence[str], weights: Sequence[float]) -> None:
    if unknown := sorted(set(adapters) - set(model.peft_config)):
        raise ValueError(f"add_weighted_adapter: there is no adapter {', '.join(unknown)}")
    if not adapters or len(adapters) != len(weights):
        raise ValueError(
            f"add_weighted_adapter: {len(adapters)} adapters and {len(weights)} weights: expected one each"
        )
    for name in adapters:
        config = model.peft_config[name]
        for field in ("modules_to_save", "bias", "trainable_token_indices"):
            if (value := getattr(config, field)) and value != "none":
                raise ValueError(
                    f"add_weighted_adapter: adapter {name!r} has {field}={value!r:.200}: only M has a weighted sum, so give "
                    "adapters that train nothing else"
                )


def _check_equal(found: Sequence[_On], layers: Mapping[str, MoraLayer]) -> None:
    """Raise ValueError where two matrices have no sum, or one operator too many for one configuration, or are elsewhere."""
    on_layer: dict[str, _On] = {}
    for this in found:
        M = layers[this.module].matrix(this.adapter)
        if M.is_meta or M.numel() != this.operator.r_hat**2:
            raise ValueError(
                f"add_weighted_adapter: M of adapter {this.adapter!r} on {this.module} is not in memory (offloaded, or "
                "split by DeepSpeed): load the adapters on a model that is in memory as a whole"
            )
        same = on_layer.setdefault(this.module, this)
        for field, other in {**dict.fromkeys(("operator", *OPTIONS), found[0]), "r_hat": same}.items():
            if other.field(field) != this.field(field):
                raise ValueError(
                    f"add_weighted_adapter: only equal operators have a sum in M: {field} is {other.field(field)!r} of "
                    f"adapter {other.adapter!r} on {other.module}, {this.field(field)!r} of {this.adapter!r} on "
                    f"{this.module}: merge one after the other with merge_and_unload"
                )


def _config_of_sum(model: MoraModel, adapters: Sequence[str], layers: Mapping[str, MoraLayer]) -> MoraConfig:
    """Return a configuration of exactly these layers, with the r that the adapters have on each. Raises: ValueError."""
    found = [_On(a, name, layer.operator[a]) for name, layer in layers.items() for a in adapters if a in layer.operator]
    _check_equal(found, layers)
    configs = [model.peft_config[adapter] for adapter in adapters]
    r_of = {this.module: layers[this.module].r[this.adapter] for this in found}
    return replace(
        configs[0],
        target_modules="|".join(map(re.escape, layers)),  # whole names: another module's may end like one of these
        rank_pattern={f"^{re.escape(name)}": r for name, r in r_of.items() if r != configs[0].r},
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        **{field: found[0].field(field) for field in ("operator", *OPTIONS)},
        inference_mode=True,
        restarted=any(config.restarted for config in configs),
    )


def _set_sum(layer: MoraLayer, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
    wanted = next(layer.operator[name] for name in adapters if name in layer.operator)
    made = layer.operator[adapter_name]
    if made != wanted:
        raise ValueError(
            f"add_weighted_adapter: the adapters differ in rhat_rounding, with which one r gives r_hat={wanted.r_hat} and "
            f"r_hat={made.r_hat}: merge one after the other with merge_and_unload"
        )
    parts = [
        (weight * layer.scaling[name], layer.matrix(name))
        for name, weight in zip(adapters, weights, strict=True)
        if name in layer.mora_M
    ]
    dtype = reduce(torch.promote_types, (M.dtype for _, M in parts))
    exact = torch.promote_types(dtype, torch.float32)
    total = torch.stack([factor * M.to(exact) for factor, M in parts]).sum(0)
    square: Any = layer.mora_M[adapter_name]
    square.weight = nn.Parameter(total.to(dtype), requires_grad=False)
