"""The adapted layers of a run, as its restarts see them."""

from __future__ import annotations

from functools import partial

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from mora.adapter.layer import MoraLayer
from mora.config.schema import LoraAdapter, MoraAdapter, PeftAdapter
from mora.errors import ConfigError
from mora.restarts import layers
from mora.restarts.layers import Adapted

from .lora import first_a


def adapted_layers(model: PeftModel, adapter: LoraAdapter | MoraAdapter | PeftAdapter) -> list[Adapted]:
    """Every adapted layer, in the model's order. Raises: ConfigError for a kind that is not LoRA's or MoRA's."""
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and not isinstance(layer, (LoraLayer, MoraLayer)):
            raise ConfigError(
                f"method.restart: {name} is a {type(layer).__name__}, whose update no restart knows to merge"
            )
    init = adapter.init if isinstance(adapter, LoraAdapter) else "kaiming"
    return layers.adapted_layers(model, partial(first_a, init=init))
