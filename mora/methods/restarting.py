"""An adapted layer as a restart sees it: a base weight, an update to add to it, and the adapter's first values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Generator, Tensor, nn

from mora.adapter.layer import MoraLayer
from mora.config.schema import LoraAdapter, MoraAdapter

from .lora import first_values


@dataclass(frozen=True)
class Adapted:
    """`name` is the module's in the model; `adapter` its trainable tensors, under the names of PEFT's attributes."""

    name: str
    layer: LoraLayer | MoraLayer
    adapter_name: str
    init: Literal["kaiming", "orthonormal"]
    base: nn.Parameter
    adapter: dict[str, nn.Parameter]

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """What the adapter adds to `base`: its shape, in fp32, on the adapter's device."""
        if isinstance(self.layer, MoraLayer):
            return self.layer._wide_delta_weight(self.adapter_name)
        return self.layer.get_delta_weight(self.adapter_name).float()

    def first_values(self, generator: Generator) -> dict[str, Tensor]:
        """The adapter before its first step, on the CPU: it adds nothing."""
        if isinstance(self.layer, MoraLayer):
            r_hat = self.layer.operator[self.adapter_name].r_hat
            return {"mora_M": torch.zeros(r_hat, r_hat)}
        return first_values(self.layer, self.adapter_name, self.init, generator)


def adapted_layers(model: PeftModel, adapter: LoraAdapter | MoraAdapter) -> list[Adapted]:
    """Every adapted layer, in the model's order."""
    (adapter_name,) = model.active_adapters
    init = adapter.init if isinstance(adapter, LoraAdapter) else "kaiming"
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            own = {"lora_A": layer.lora_A[adapter_name].weight, "lora_B": layer.lora_B[adapter_name].weight}
        elif isinstance(layer, MoraLayer):
            own = {"mora_M": layer.mora_M[adapter_name].weight}
        else:
            continue
        found.append(Adapted(name, layer, adapter_name, init, layer.get_base_layer().weight, own))
    return found
