"""Several adapters in one batch: one for each row (PEFT's `adapter_names`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import GenerationConfig

from .layer import MoraLayer

if TYPE_CHECKING:
    from .model import MoraModel

BASE = "__base__"  # PEFT's name for no adapter
READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # of the weights of their layers, which they do not call


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
    Raises: ValueError in training, for unknown names, or where an adapter is merged or on a layer of torch's attention;
        inside it, of a module whose input has another number of rows: flattened tokens, patches of images, or what a
        router sends to an expert, whose order is not known.
    """
    modules = dict(model.named_modules())
    layers = [module for module in modules.values() if isinstance(module, MoraLayer)]
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
    for name, module in modules.items():
        if isinstance(module, READERS) and any(isinstance(inner, MoraLayer) for inner in module.modules()):
            raise ValueError(
                f"adapter_names: {name.removeprefix('model.')} is a {type(module).__name__}, which reads the weights of its "
                "layers and gives all rows the active adapter: leave its layers out of target_modules, or give each adapter "
                "a batch of its own"
            )
    handles = []
    for name, module in modules.items():
        of_rows = partial(names_of_rows, tuple(names), copies, name.removeprefix("model."))
        if isinstance(module, MoraLayer):
            module.adapter_of_row = of_rows
        elif isinstance(module, AuxiliaryTrainingWrapper):
            hook = partial(_with_names, of_rows=of_rows)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for layer in layers:
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
