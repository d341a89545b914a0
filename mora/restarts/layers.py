"""The adapted layers of a model as a restart sees them: base weight, update, and the adapter's first values."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Generator, Tensor, nn

from mora.adapter.layer import MoraLayer
from mora.adapter.operators import Sharing
from mora.choices import Groups

InitA = Callable[[tuple[int, ...], Generator], Tensor]


def kaiming_a(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return LoRA's A before training, as PEFT: (r, in_features), fp32 on the CPU, uniform in +-1/sqrt(in_features)."""
    r, in_features = shape
    bound = 1 / math.sqrt(in_features)
    return torch.rand(r, in_features, generator=generator) * (2 * bound) - bound


@dataclass(frozen=True)
class Adapted:
    """An adapted layer: a base weight, the adapter's trainable tensors, and what a restart does with them.

    Attributes:
        name: The name of the module in the model.
        adapter_name: PEFT's name of the active adapter.
        base: The weight that the update is added to.
        adapter: The tensors that train, by the names of PEFT's attributes.
        delta_weight: Returns what the adapter adds to `base`, in the shape of `base`, in fp32, on the adapter's device.
        initial_state: Returns the adapter's tensors before its first step, on the CPU. With them it adds nothing.
    """

    name: str
    adapter_name: str
    base: nn.Parameter
    adapter: dict[str, nn.Parameter]
    delta_weight: Callable[[], Tensor]
    initial_state: Callable[[Generator], dict[str, Tensor]]


def of_lora(name: str, layer: LoraLayer, adapter_name: str, init_a: InitA) -> Adapted:
    def initial_state(generator: Generator) -> dict[str, Tensor]:
        r = layer.r[adapter_name]  # sizes of the module, not of its tensors: ZeRO-3 leaves those empty
        return {
            "lora_A": init_a((r, layer.in_features), generator),
            "lora_B": torch.zeros(layer.out_features, r),
        }

    return Adapted(
        name,
        adapter_name,
        layer.get_base_layer().weight,
        {"lora_A": layer.lora_A[adapter_name].weight, "lora_B": layer.lora_B[adapter_name].weight},
        torch.no_grad()(lambda: layer.get_delta_weight(adapter_name).float()),
        initial_state,
    )


def of_mora(name: str, layer: MoraLayer, adapter_name: str) -> Adapted:
    def initial_state(generator: Generator) -> dict[str, Tensor]:
        r_hat = layer.operator[adapter_name].r_hat
        return {"mora_M": torch.zeros(r_hat, r_hat)}

    return Adapted(
        name,
        adapter_name,
        layer.get_base_layer().weight,
        {"mora_M": cast(nn.Parameter, layer.mora_M[adapter_name].weight)},
        torch.no_grad()(lambda: layer.fp32_delta_weight(adapter_name)),
        initial_state,
    )


def adapted_layers(model: PeftModel, init_a: InitA = kaiming_a) -> list[Adapted]:
    """Return every layer that has the active adapter, in the model's order. `init_a` draws LoRA's A.

    Raises:
        ValueError: A layer is neither LoRA's nor MoRA's.
    """
    (adapter_name,) = model.active_adapters
    layers = []
    for name, layer in model.named_modules():
        if isinstance(layer, (LoraLayer, MoraLayer)) and adapter_name not in layer.r:
            continue  # another adapter's alone
        if isinstance(layer, MoraLayer):
            layers.append(of_mora(name, layer, adapter_name))
        elif isinstance(layer, LoraLayer):
            layers.append(of_lora(name, layer, adapter_name, init_a))
        elif isinstance(layer, BaseTunerLayer):
            raise ValueError(f"{name} is a {type(layer).__name__}, whose update no restart knows to merge")
    return layers


def set_groups(model: PeftModel, groups: Groups) -> int:
    """Change the kind of groups in every sharing layer, and in the configuration that is saved.

    Warn if there is no such layer: rotation and the others have no groups.

    Returns:
        The number of layers.
    """
    changed = 0
    for name in model.active_adapters:
        sharing = sharing_layers(model, name)
        for layer in sharing:
            layer.set_groups(name, groups)
        if sharing:
            config = copy.copy(model.peft_config[name])  # which may be another adapter's as well
            config.groups = groups
            model.peft_config[name] = config
        changed += len(sharing)
    if not changed:
        warnings.warn(f"groups={groups!r} changes nothing: no layer has operator sharing", stacklevel=2)
    return changed


def sharing_layers(model: nn.Module, adapter_name: str) -> Sequence[MoraLayer]:
    layers = [m for m in model.modules() if isinstance(m, MoraLayer)]
    return [layer for layer in layers if isinstance(layer.operator.get(adapter_name), Sharing)]
