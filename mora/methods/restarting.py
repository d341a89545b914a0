"""The adapted layers of a run, as its restarts see them."""

from __future__ import annotations

from functools import partial

from peft import PeftModel

from mora.config.schema import LoraAdapter, MoraAdapter
from mora.restarts import layers
from mora.restarts.layers import Adapted

from .lora import first_a


def adapted_layers(model: PeftModel, adapter: LoraAdapter | MoraAdapter) -> list[Adapted]:
    """Every adapted layer, in the model's order."""
    init = adapter.init if isinstance(adapter, LoraAdapter) else "kaiming"
    return layers.adapted_layers(model, partial(first_a, init=init))
