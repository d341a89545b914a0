"""What may carry an adapter."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mora.errors import ConfigError


def check_targets(model: nn.Module, targets: list[str] | str) -> None:
    """Raise ConfigError for a name that no linear module ends with, or where there is none beside the head.

    PEFT passes over a name that matches nothing, as long as another one does.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    modules = [(name, module) for name, module in model.named_modules() if module is not head]
    linear = [name for name, module in modules if isinstance(module, (nn.Linear, Conv1D))]
    if not linear:
        raise ConfigError(
            "the model has no linear module beside its head: there is nothing that an adapter could be on"
        )
    for target in targets if isinstance(targets, list) else []:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
            raise ConfigError(
                f"method.adapter.target_modules: no linear module is called {target!r}; there are {known}; "
                "model.target_modules=all-linear takes all of them"
            )
