"""Several adapters at once: one for each row of a batch, and weighted sums of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import nn
from transformers import GenerationConfig

from mora.sizes import wanted_and_clamped_r_hat

from .config import MoraConfig
from .layer import MoraLayer
from .operators import OPERATORS, Operator

if TYPE_CHECKING:
    from .model import MoraModel

BASE = "__base__"  # PEFT's name for no adapter
READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # of the weights of their layers, which they do not call
OPTIONS = ("pad", "groups", "split", "pairs", "overflow")  # fields that a configuration and its operators share


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
    for name, module in model.named_modules():
        if isinstance(module, READERS) and any(isinstance(inner, MoraLayer) for inner in module.modules()):
            raise ValueError(
                f"adapter_names: {name.removeprefix('model.')} is a {type(module).__name__}, which reads the weights of its "
                "layers and gives all rows the active adapter: leave its layers out of target_modules, or give each adapter "
                "a batch of its own"
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
        bias = None if config.bias == "none" else config.bias
        trained = {"modules_to_save": config.modules_to_save, "bias": bias}
        for field, value in (trained | {"trainable_token_indices": config.trainable_token_indices}).items():
            if value:
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
    """Return the configuration whose operators are those that the adapters have on each layer. Raises: ValueError."""
    found = [_On(a, name, layer.operator[a]) for name, layer in layers.items() for a in adapters if a in layer.operator]
    _check_equal(found, layers)
    on_layer = {this.module: this for this in found}
    r_of = {name: layers[name].r[on.adapter] for name, on in on_layer.items()}
    most_common = Counter(r_of.values()).most_common(1)[0][0]
    configs = [model.peft_config[adapter] for adapter in adapters]
    config = replace(
        configs[0],
        r=most_common,
        rank_pattern={re.escape(name): r for name, r in r_of.items() if r != most_common},
        target_modules=set(layers),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        **{field: found[0].field(field) for field in ("operator", *OPTIONS)},
        inference_mode=True,
        restarted=any(config.restarted for config in configs),
    )
    for name, (adapter, _, operator) in on_layer.items():
        r = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), name), config.r)  # as PEFT finds it
        sides = (operator.in_features, operator.out_features)
        _, r_hat = wanted_and_clamped_r_hat(*sides, r, config.operator, config.rhat_rounding)
        if r_hat != operator.r_hat:
            raise ValueError(
                f"add_weighted_adapter: r_hat is {operator.r_hat} of adapter {adapter!r} on {name}, where r={r} and "
                f"rhat_rounding={config.rhat_rounding!r} of adapter {adapters[0]!r} give {r_hat}: one adapter has one "
                "rhat_rounding, so merge one after the other with merge_and_unload"
            )
    return config


def _set_sum(layer: MoraLayer, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
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
