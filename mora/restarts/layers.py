"""What a restart works on: adapted layers, each a base weight, an update to add to it and the adapter's first values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Generator, Tensor, nn

from mora.adapter.layer import MoraLayer
from mora.adapter.operators import Groups, Sharing

FirstA = Callable[[tuple[int, ...], Generator], Tensor]


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate, `lr_scale` times the run's. `adapter`: a restart resets their moments."""

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    lr_scale: float = 1.0
    adapter: bool = False


def kaiming_a(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """A of LoRA before training, shape (r, in_features), fp32 on the CPU: uniform in +-1/sqrt(in_features), as PEFT."""
    r, in_features = shape
    bound = 1 / math.sqrt(in_features)
    return torch.rand(r, in_features, generator=generator) * (2 * bound) - bound


@dataclass(frozen=True)
class Adapted:
    """`name` is the module's in the model; `adapter` its trainable tensors, under the names of PEFT's attributes."""

    name: str
    layer: LoraLayer | MoraLayer
    adapter_name: str
    first_a: FirstA
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
        r = self.layer.r[self.adapter_name]  # sizes of the module, not of its tensors: ZeRO-3 leaves those empty
        return {
            "lora_A": self.first_a((r, self.layer.in_features), generator),
            "lora_B": torch.zeros(self.layer.out_features, r),
        }


def adapted_layers(model: PeftModel, first_a: FirstA = kaiming_a) -> list[Adapted]:
    """Every adapted layer, in the model's order."""
    (adapter_name,) = model.active_adapters
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            own = {"lora_A": layer.lora_A[adapter_name].weight, "lora_B": layer.lora_B[adapter_name].weight}
        elif isinstance(layer, MoraLayer):
            own = {"mora_M": layer.mora_M[adapter_name].weight}
        else:
            continue
        found.append(Adapted(name, layer, adapter_name, first_a, layer.get_base_layer().weight, own))
    return found


def set_groups(model: PeftModel, groups: Groups) -> int:
    """Another group kind in every sharing layer, and in the config that is saved. Returns the number of layers.

    Warns where there is none: rotation and the others have no kinds of groups.
    """
    changed = 0
    for name in model.active_adapters:
        sharing = sharing_layers(model, name)
        for layer in sharing:
            layer.set_groups(name, groups)
        if sharing:
            model.peft_config[name].groups = groups
        changed += len(sharing)
    if not changed:
        warnings.warn(f"groups={groups!r} changes nothing: no layer has operator sharing", stacklevel=2)
    return changed


def sharing_layers(model: nn.Module, adapter_name: str) -> Sequence[MoraLayer]:
    layers = [m for m in model.modules() if isinstance(m, MoraLayer)]
    return [layer for layer in layers if isinstance(layer.operator.get(adapter_name), Sharing)]
