"""The adapted layers of a run, as its restarts see them."""

from __future__ import annotations

from peft import PeftModel

from mora.errors import ConfigError
from mora.restarts.layers import Adapted, InitA, adapted_layers, kaiming_a


def restarted_layers(model: PeftModel, init_a: InitA = kaiming_a) -> list[Adapted]:
    """Return every adapted layer, in the model's order. Raise ConfigError for a layer that is not LoRA's or MoRA's."""
    try:
        return adapted_layers(model, init_a)
    except ValueError as error:
        raise ConfigError(f"method.restart: {error}") from error
