"""Parameters and FLOPs of a run, and what its adapters keep for backward, counted from the shapes. No torch, no weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from mora.config import ConfigError, RunConfig
from mora.config.schema import LoraAdapter, MoraAdapter
from mora.models.shapes import Linear, shape_of

TRAINED_HEAD = 8  # FLOPs a weight and token: forward, both gradients, and the logits once more in backward
MAX_GROUP = 8  # operator=auto: sharing up to this many inputs a group, mora/adapter/model.py
ALIGNMENT = 8  # numbers that a compressed block is padded to, mora/adapter/gather.py


@dataclass(frozen=True)
class Adapter:
    """One module's adapter: what trains, multiply-adds a token, and what backward needs a token beyond what the base keeps:
    `saved` numbers of its own, and the module's input where `keeps_input`, which all modules that read it keep once.
    `frozen`: parameters that do not train. `ignored`: inputs that can never change the output.
    """

    parameters: int
    products: int
    saved: float
    keeps_input: bool
    frozen: int = 0
    ignored: int = 0


def adapters(config: RunConfig) -> dict[str, tuple[Linear, Adapter]]:
    """Of every kind of module that carries one, by its name; none for a method without."""
    settings, shape = config.method.adapter, shape_of(config.model)
    if settings is None:
        return {}
    _check_known(config)
    wrapped = [linear for linear in shape.linears if _is_target(linear.name, config.target_modules)]
    return {linear.name: (linear, adapter(config, linear, shape.hidden)) for linear in wrapped}


def _check_known(config: RunConfig) -> None:
    if not isinstance(config.method.adapter, (LoraAdapter, MoraAdapter)):
        raise ConfigError(f"what an adapter of method {config.method.name} costs is not known")


def _is_target(name: str, targets: list[str] | str) -> bool:
    return targets == "all-linear" or any(f".{name}".endswith(f".{target}") for target in targets)


def adapter(config: RunConfig, linear: Linear, width: int) -> Adapter:
    """Of one module of that kind. `width`: the model's hidden size.

    LoRA under dropout keeps a masked copy of its input and a byte mask. MoRA keeps f_comp(x), or x where that is no larger
    or where its blocks are multiplied without a copy; its dropout is drawn again in backward (mora/adapter/kernels.py).
    """
    k, d, settings = linear.in_features, linear.out_features, config.method.adapter
    r = config.model.rank_of(linear.name, config.r or 0)
    if isinstance(settings, LoraAdapter):
        frozen = r * k if settings.freeze_a else 0
        parameters = r * (k + d) + (d if settings.dora else 0) - frozen
        needs_x = not settings.freeze_a
        masked = needs_x * k + k / number_bytes(config) if settings.dropout else 0
        saved = masked + r + (2 * d if settings.dora else 0)
        return Adapter(parameters, r * (k + d), saved, needs_x and not settings.dropout, frozen)
    _check_known(config)
    assert isinstance(settings, MoraAdapter)
    operator = mora_operator(config, width)
    even = operator == "rotation"
    r_hat = square_size(k, d, r, settings.rhat_rounding, even)
    r_hat = min(r_hat, min(k, d) // 2 * 2 if even else min(k, d))
    blocks = 1
    if operator in ("decouple", "rotation"):
        inputs, outputs = math.ceil(k / r_hat), math.ceil(d / r_hat)
        blocks = inputs if settings.overflow == "fold" else min(inputs, outputs)  # those that reach the output
    compressed = blocks * math.ceil(r_hat / ALIGNMENT) * ALIGNMENT
    in_place = blocks > 1 and not settings.dropout and k == d == compressed == blocks * r_hat
    keeps_x = in_place or compressed >= k
    ignored = 0 if operator == "sharing" else max(k - blocks * r_hat, 0)
    return Adapter(r_hat**2, blocks * r_hat**2, 0 if keeps_x else compressed, keeps_x, ignored=ignored)


def number_bytes(config: RunConfig) -> int:
    """Of a number in the dtype of weights and activations."""
    return 2 if config.scale.precision == "bf16" else 4


def square_size(in_features: int, out_features: int, r: int, rounding: str, even: bool) -> int:
    """As mora.adapter.operators.square_size, which would import torch; a test holds the two together."""
    area = (in_features + out_features) * r
    r_hat = math.isqrt(area) if rounding == "floor" else int(math.sqrt(area) + 0.5)
    return max(r_hat // 2 * 2, 2) if even else r_hat


def mora_operator(config: RunConfig, width: int) -> str:
    """The operator of a MoRA run, "auto" resolved."""
    settings = config.method.adapter
    assert isinstance(settings, MoraAdapter)
    assert config.r is not None
    if settings.operator != "auto":
        return settings.operator
    r_hat = square_size(width, width, config.r, settings.rhat_rounding, even=False)
    return "rotation" if width > MAX_GROUP * r_hat else "sharing"


class Square(NamedTuple):
    """MoRA's M in a model: its side `r_hat` in a module of the model's `width`, and the share of all modules' inputs that
    can never change an output.
    """

    r_hat: int
    width: int
    ignored: float


def square(config: RunConfig) -> Square | None:
    """None of a method without M. Raises: ValueError where the model's shape is not known without its weights."""
    if not isinstance(config.method.adapter, MoraAdapter):
        return None
    width, found = shape_of(config.model).hidden, adapters(config).values()
    side = math.isqrt(adapter(config, Linear("", width, width, 1), width).parameters)
    inputs = sum(linear.in_features * linear.count for linear, _ in found)
    return Square(side, width, sum(own.ignored * linear.count for linear, own in found) / inputs)


def trainable(config: RunConfig) -> int:
    """Trainable parameters."""
    shape = shape_of(config.model)
    if config.method.adapter is None:
        return shape.parameters if config.method.trains else 0
    own = sum(found.parameters * linear.count for linear, found in adapters(config).values())
    return own + (shape.rest if config.trains_rest else 0)


def frozen_adapter(config: RunConfig) -> int:
    """Parameters of the adapters that do not train: A under method.adapter.freeze_a."""
    return sum(found.frozen * linear.count for linear, found in adapters(config).values())


def flops_per_token(config: RunConfig, length: float, own: bool = True) -> float:
    """Of forward and backward, a token in a sequence of `length`: 2 a multiply-add, causal attention counted once.

    A frozen weight has no gradient of its own: 4 a weight; a trained one 6. Gradient checkpointing: the layers once more, 2.
    own=False: without the adapters.
    """
    shape = shape_of(config.model)
    once = 2 if config.hardware.gradient_checkpointing else 0
    attention = (6 + once) * shape.layers * shape.hidden * length
    if config.method.adapter is None:
        return (6 + once) * shape.in_layers + TRAINED_HEAD * shape.head + attention
    products = sum(found.products * linear.count for linear, found in adapters(config).values()) if own else 0
    head = (TRAINED_HEAD if config.trains_rest else 4) * shape.head
    return (4 + once) * shape.in_layers + head + (6 + once) * products + attention
