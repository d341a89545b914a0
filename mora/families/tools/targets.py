"""What may carry an adapter."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mora.errors import ConfigError


def targeted(model: nn.Module, targets: list[str] | str) -> dict[str, nn.Module]:
    """Return the modules that will carry an adapter, by name.

    Raises:
        ConfigError: No linear module has one of the names, which PEFT passes over as long as another one matches; or there
            is no linear module beside the head.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    modules = [(name, module) for name, module in model.named_modules() if module is not head]
    linear = {name: module for name, module in modules if isinstance(module, (nn.Linear, Conv1D))}
    if not linear:
        raise ConfigError("the model has no linear module beside its head: there is nothing to adapt")
    if not isinstance(targets, list):
        return linear
    matches = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in targets}
    if unknown := [target for target, names in matches.items() if not names]:
        known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
        raise ConfigError(
            f"method.adapter.target_modules: no linear module is called {unknown[0]!r}; there are {known}; "
            "method.adapter.target_modules=all-linear takes all of them"
        )
    return {name: linear[name] for names in matches.values() for name in names}


def check_rank(r: int, modules: dict[str, nn.Module]) -> None:
    """Raise ConfigError if r exceeds the rank of every module: LoRA would have none to spare, MoRA's M would be clamped."""
    weights = {name: getattr(module, "weight", None) for name, module in modules.items()}
    sides = {name: min(w.shape) for name, w in weights.items() if isinstance(w, torch.Tensor) and w.ndim == 2}
    widest = max(sides, key=sides.__getitem__, default=None)
    if widest is not None and r > sides[widest]:
        raise ConfigError(f"r={r}: the largest module, {widest}, has rank {sides[widest]} at most; lower r")
