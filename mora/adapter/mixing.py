"""Several adapters at once: one for each row of a batch, and weighted sums of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

from .layer import MoraLayer

if TYPE_CHECKING:
    from .model import MoraModel

BASE = "__base__"  # PEFT's name for no adapter


@contextmanager
def adapter_of_each_row(model: MoraModel, names: Sequence[str], num_beams: int = 1) -> Iterator[None]:
    """Context manager: row i of every input goes through the adapter names[i], or through none if that is "__base__".

    An input may have several neighbouring rows per name: beams, or flattened tokens. Afterwards all rows go through the
    active adapters again.
    Raises: ValueError in training, for unknown names, or where an adapter is merged.
    """
    layers = [module for module in model.modules() if isinstance(module, MoraLayer)]
    known = {BASE, *(name for layer in layers for name in layer.mora_M)}
    if model.training:
        raise ValueError("adapter_names (one adapter per row) works only in inference: call model.eval() first")
    if unknown := sorted(set(names) - known):
        raise ValueError(
            f"adapter_names: there is no adapter {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    if any(layer.merged for layer in layers):
        raise ValueError(
            "adapter_names: an adapter is merged into the base weights of all rows: unmerge_adapter() first"
        )
    extended = [name for name in names for _ in range(num_beams)]
    handles = [
        module.register_forward_pre_hook(partial(_with_names, names=extended), with_kwargs=True)
        for module in model.modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
    ]
    for layer in layers:
        layer.adapter_of_row = tuple(names)
    try:
        yield
    finally:
        for layer in layers:
            layer.adapter_of_row = None
        for handle in handles:
            handle.remove()


def _with_names(module: Any, args: Any, kwargs: dict[str, Any], names: list[str]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"adapter_names": names}


@torch.no_grad()
def add_weighted(model: MoraModel, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
    """Add a frozen adapter whose delta_weight is the weighted sum of the others', exactly: delta_weight is linear in M.

    Raises: ValueError for unknown adapters, another number of weights, adapters whose operators differ, or trained modules
        of more than one adapter, which have no sum.
    """
    if unknown := sorted(set(adapters) - set(model.peft_config)):
        raise ValueError(f"add_weighted_adapter: there is no adapter {', '.join(unknown)}")
    if not adapters or len(adapters) != len(weights):
        raise ValueError(
            f"add_weighted_adapter: {len(adapters)} adapters and {len(weights)} weights: expected one each"
        )
    saved = [m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)]
    if any(sum(name in module.modules_to_save for name in adapters) > 1 for module in saved):
        raise ValueError("add_weighted_adapter: modules_to_save of several adapters cannot be summed")
    layers = [m for m in model.modules() if isinstance(m, MoraLayer)]
    for layer in layers:
        operators = {name: layer.operator[name] for name in adapters if name in layer.operator}
        if len(set(operators.values())) > 1:
            raise ValueError(
                f"add_weighted_adapter: only equal operators have a sum in M, got {operators}: merge one after the other"
            )
    configs = [model.peft_config[name] for name in adapters]
    targets = [config.target_modules for config in configs]
    union = "|".join(f"({t})" for t in targets) if isinstance(targets[0], str) else set().union(*targets)
    model.peft_config[adapter_name] = replace(
        configs[0],
        target_modules=union,
        inference_mode=True,
        restarted=any(config.restarted for config in configs),
    )
    model.inject_adapter(model.model, adapter_name)
    for layer in layers:
        if adapter_name in layer.mora_M:
            M = layer.matrix(adapter_name)
            M.requires_grad_(False).zero_()
            for name, weight in zip(adapters, weights, strict=True):
                if name in layer.mora_M:
                    M.add_(weight * layer.scaling[name] * layer.matrix(name).to(M))
