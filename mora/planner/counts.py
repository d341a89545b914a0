"""Parameters and FLOPs of a run, and what its adapters keep for backward, counted from the shapes. No torch, no weights."""

from __future__ import annotations

import math
from typing import NamedTuple

from mora.config import ConfigError, RunConfig
from mora.families.base import Footprint
from mora.families.mora import Mora
from mora.models.shapes import Linear, shape_of

TRAINED_HEAD = 8  # FLOPs per weight and token: forward, both gradients, and the logits once more in backward


def adapters(config: RunConfig) -> dict[str, tuple[Linear, Footprint]]:
    """Return every kind of module that carries an adapter, by name, with the adapter's footprint.

    There are none for a method without adapters.
    """
    settings, shape = config.method.adapter, shape_of(config.model)
    if settings is None:
        return {}
    _check_known(config)
    wrapped = [linear for linear in shape.linears if _is_target(linear.name, config.target_modules)]
    return {linear.name: (linear, adapter(config, linear, shape.hidden)) for linear in wrapped}


def _check_known(config: RunConfig) -> None:
    if not getattr(config.method.adapter, "has_known_cost", False):
        raise ConfigError(f"the cost of an adapter of method {config.method.name} is unknown")


def _is_target(name: str, targets: list[str] | str) -> bool:
    return targets == "all-linear" or any(f".{name}".endswith(f".{target}") for target in targets)


def adapter(config: RunConfig, linear: Linear, width: int) -> Footprint:
    """Return the adapter's footprint on one module of that kind. `width`: the model's hidden size."""
    _check_known(config)
    assert config.method.adapter is not None
    r = config.model.rank_of(linear.name, config.r or 0)
    return config.method.adapter.footprint(linear.in_features, linear.out_features, r, width, number_bytes(config))


def number_bytes(config: RunConfig) -> int:
    """Return the bytes of a number in the dtype of weights and activations."""
    return 2 if config.scale.precision == "bf16" else 4


def operator_of(config: RunConfig) -> str | None:
    """Return MoRA's operator with "auto" resolved; None for other methods."""
    if config.method.adapter is None:
        return None
    return config.method.adapter.operator_for(shape_of(config.model).hidden, config.r or 0)


class Square(NamedTuple):
    """The size of MoRA's M in a model.

    Its side is `r_hat` in a module of the model's `width`; `ignored` is the share of all modules' inputs that never
    change an output.
    """

    r_hat: int
    width: int
    ignored: float


def square(config: RunConfig) -> Square | None:
    """Return the size of M; None for a method without M. Raises ValueError if the shape is not known without weights."""
    if not isinstance(config.method.adapter, Mora):
        return None
    width, adapted = shape_of(config.model).hidden, adapters(config).values()
    side = math.isqrt(adapter(config, Linear("", width, width, 1), width).parameters)
    inputs = sum(linear.in_features * linear.count for linear, _ in adapted)
    return Square(side, width, sum(footprint.ignored * linear.count for linear, footprint in adapted) / inputs)


def trainable(config: RunConfig) -> int:
    """Return the number of trainable parameters."""
    shape = shape_of(config.model)
    if config.method.adapter is None:
        return shape.parameters if config.method.trains else 0
    in_adapters = sum(footprint.parameters * linear.count for linear, footprint in adapters(config).values())
    return in_adapters + (shape.rest if config.trains_rest else 0)


def frozen_adapter(config: RunConfig) -> int:
    """Return the parameters of the adapters that do not train: A under method.adapter.freeze_a."""
    return sum(footprint.frozen * linear.count for linear, footprint in adapters(config).values())


def shadow_bytes(config: RunConfig) -> int:
    """Return the bytes of the exact sums, in fp32, that a method with restarts keeps of the layers' weights."""
    return 4 * shape_of(config.model).in_layers if config.method.restart else 0


def flops_per_token(config: RunConfig, length: float, with_adapters: bool = True) -> float:
    """Return the FLOPs of forward and backward per token in a sequence of `length` tokens.

    A multiply-add counts 2, causal attention once. A frozen weight has no gradient of its own and costs 4, a trained
    one 6; gradient checkpointing computes the layers once more, 2. with_adapters=False leaves out the adapters.
    """
    shape = shape_of(config.model)
    once = 2 if config.hardware.gradient_checkpointing else 0
    attention = (6 + once) * shape.layers * shape.hidden * length
    if config.method.adapter is None:
        return (6 + once) * shape.in_layers + TRAINED_HEAD * shape.head + attention
    adapted = adapters(config).values() if with_adapters else ()
    products = sum(footprint.products * linear.count for linear, footprint in adapted)
    head = (TRAINED_HEAD if config.trains_rest else 4) * shape.head
    return (4 + once) * shape.in_layers + head + (6 + once) * products + attention
