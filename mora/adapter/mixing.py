"""Several adapters at once: one for each row of a batch, and weighted sums of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from transformers import GenerationConfig

from .layer import MoraLayer

if TYPE_CHECKING:
    from .model import MoraModel

BASE = "__base__"  # PEFT's name for no adapter


def rows_per_name(model: nn.Module, args: Sequence[Any], options: Mapping[str, Any]) -> int:
    """Return how many rows `generate` makes of one: the larger of num_beams and num_return_sequences.

    args, options: what `generate` is called with; what they leave open stands in the model's own generation_config.
    """
    given = next((a for a in (*args, options.get("generation_config")) if isinstance(a, GenerationConfig)), None)
    own = getattr(model, "generation_config", None)
    counts = [1]
    for name in ("num_beams", "num_return_sequences"):
        values = (options.get(name), getattr(given, name, None), getattr(own, name, None))
        counts += [value for value in values if value is not None][:1]
    return max(counts)


@contextmanager
def adapter_of_each_row(model: MoraModel, names: Sequence[str], copies: int = 1) -> Iterator[None]:
    """Context manager: row i of every input goes through the adapter names[i], or through none if that is "__base__".

    In generation an input may also have `copies` neighbouring rows per name, its beams or sequences to return. Afterwards
    all rows go through the active adapters again.
    Raises: ValueError in training, for unknown names, or where an adapter is merged; inside it, of a module whose input
        has another number of rows: flattened tokens, patches of images, or what a router sends to an expert, whose
        order is not known.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoraLayer)}
    known = {BASE, *(name for layer in layers.values() for name in layer.mora_M)}
    if model.training:
        raise ValueError("adapter_names (one adapter per row) works only in inference: call model.eval() first")
    if unknown := sorted(set(names) - known):
        raise ValueError(
            f"adapter_names: there is no adapter {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    if any(layer.merged for layer in layers.values()):
        raise ValueError(
            "adapter_names: an adapter is merged into the base weights of all rows: unmerge_adapter() first"
        )
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            of_rows = partial(names_of_rows, tuple(names), copies, name.removeprefix("model."))
            hook = partial(_with_names, of_rows=of_rows)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    for name, layer in layers.items():
        layer.adapter_of_row = partial(names_of_rows, tuple(names), copies, name.removeprefix("model."))
    try:
        yield
    finally:
        for layer in layers.values():
            layer.adapter_of_row = None
        for handle in handles:
            handle.remove()


def names_of_rows(names: Sequence[str], copies: int, module: str, rows: int) -> list[str]:
    """Return the adapter of each row of a module's input. Raises: ValueError if that is not known."""
    if rows == len(names):
        return list(names)
    if rows == len(names) * copies:
        return [name for name in names for _ in range(copies)]
    expected = f"{len(names)} rows" + (f", or {len(names) * copies} in generation" if copies > 1 else "")
    raise ValueError(
        f"adapter_names: {len(names)} names for an input of {rows} rows in {module}: expected {expected}. Give one name per "
        "row of the batch. If the batch has that many rows, this module's input has others (flattened tokens, patches of "
        "images, tokens of an expert): leave it out of target_modules, or give each adapter a batch of its own"
    )


def _with_names(module: Any, args: Any, kwargs: dict[str, Any], of_rows: Any) -> tuple[Any, dict[str, Any]]:
    x = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
    return args, kwargs | {"adapter_names": of_rows(len(x))}


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
