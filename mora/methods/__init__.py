"""What a method wraps and what it trains. The training loop knows none of their names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mora.config.schema import LoraAdapter, MoraAdapter, PeftAdapter, RunConfig
from mora.errors import ConfigError

from . import any_peft, lora, mora
from .groups import Group, parameter_groups, trainable
from .parameters import parameter_lines, parameter_table

__all__ = [
    "Group",
    "merged",
    "parameter_groups",
    "parameter_lines",
    "parameter_table",
    "prepare",
    "train_rest",
    "trainable",
]


def prepare(model: nn.Module, config: RunConfig) -> nn.Module:
    """The model with its adapter, if the method has one; what trains requires grad, the rest is frozen.

    Adapter initialisation depends on `config.seed` alone.
    Raises: ConfigError where a target is the name of no linear module, there is none at all, or nothing here makes
        adapters of that kind.
    """
    adapter = config.method.adapter
    if adapter is None:
        return model.requires_grad_(config.method.trains)
    if not isinstance(adapter, PeftAdapter):
        _check_rank(config.r or 0, _targets(model, config.target_modules))
    torch.manual_seed(config.seed)
    adapted = _adapted(model, config)
    if config.trains_rest:
        train_rest(adapted)
    return adapted


def _adapted(model: nn.Module, config: RunConfig) -> PeftModel:
    adapter, targets = config.method.adapter, config.target_modules
    if isinstance(adapter, PeftAdapter):
        made = any_peft.adapted(model, adapter, targets)
        _check_merge(made, adapter)
        return made
    assert config.r is not None
    if isinstance(adapter, LoraAdapter):
        made = get_peft_model(
            model, lora.peft_config(adapter, config.r, config.lora_alpha(), targets, config.rank_pattern)
        )
        lora.set_up(made, adapter, config.seed)
        return made
    if isinstance(adapter, MoraAdapter):
        return get_peft_model(model, mora.peft_config(adapter, config.r, targets, config.rank_pattern))
    raise ConfigError(
        f"method.adapter.kind={getattr(adapter, 'kind', None)!r} ({config.method.name}): mora.methods has no code for it"
    )


def _check_merge(model: PeftModel, adapter: PeftAdapter) -> None:
    """Evaluation merges: what cannot be merged would be found after hours. Raises: ConfigError."""
    dtype = next(model.parameters()).dtype
    try:
        with merged(model, dtype):
            pass
    except any_peft.REFUSED as error:
        raise any_peft.refused(adapter, error) from error


def _targets(model: nn.Module, targets: list[str] | str) -> dict[str, nn.Module]:
    """The modules that will carry an adapter, by name. Raises: ConfigError; PEFT passes over a name that matches nothing, as
    long as another one does."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    modules = [(name, module) for name, module in model.named_modules() if module is not head]
    linear = {name: module for name, module in modules if isinstance(module, (nn.Linear, Conv1D))}
    if not linear:
        raise ConfigError(
            "the model has no linear module beside its head: there is nothing that an adapter could be on"
        )
    if not isinstance(targets, list):
        return linear
    found = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in targets}
    if unknown := [target for target, names in found.items() if not names]:
        known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
        raise ConfigError(
            f"method.adapter.target_modules: no linear module is called {unknown[0]!r}; there are {known}; "
            "method.adapter.target_modules=all-linear takes all of them"
        )
    return {name: linear[name] for names in found.values() for name in names}


def _check_rank(r: int, targets: dict[str, nn.Module]) -> None:
    """Raises: ConfigError where r is more than the rank of any module: a low-rank adapter would have none to spare, and MoRA
    far fewer parameters than it stands for."""
    weights = {name: getattr(module, "weight", None) for name, module in targets.items()}
    sides = {name: min(w.shape) for name, w in weights.items() if isinstance(w, torch.Tensor) and w.ndim == 2}
    widest = max(sides, key=sides.__getitem__, default=None)
    if widest is not None and r > sides[widest]:
        raise ConfigError(f"r={r}: the largest module, {widest}, has rank {sides[widest]} at most; lower r")


def train_rest(model: nn.Module) -> None:
    """Pretraining: every module that carries no adapter trains."""
    inside = {id(m) for layer in model.modules() if isinstance(layer, BaseTunerLayer) for m in layer.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for p in module.parameters(recurse=False):
                p.requires_grad_(True)


@contextmanager
def merged(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within, the model computes as its merged checkpoint in `dtype` would: adapters added, everything rounded.

    Afterwards every weight is, bit for bit and at its address, what it was: taking an update off again would round.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    adapted = {id(p) for layer in layers for p in layer.parameters()}
    wider = [(p, p.data) for p in model.parameters() if id(p) not in adapted and p.dtype != dtype]
    bases = [p for layer in layers for p in layer.get_base_layer().parameters(recurse=False)]
    kept = [(p, p.data, p.data.to("cpu", copy=True)) for p in bases]
    if isinstance(model, PeftModel):
        model.merge_adapter()
    for p, value in wider:
        p.data = value.to(dtype)
    try:
        yield
    finally:
        if isinstance(model, PeftModel):
            model.unmerge_adapter()
        for p, at_home, rounded in kept:
            p.data = at_home
            p.data.copy_(rounded)
        for p, at_home in wider:
            p.data = at_home
