"""Trainable parameters by kind of module, beside those of LoRA at the same rank."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .groups import trainable


def parameter_table(model: nn.Module) -> dict[str, int]:
    """Return the trainable parameters of each kind of module, named without layer numbers, largest first."""
    table: dict[str, int] = {}
    for name, p in trainable(model).items():
        kind = _kind(name)
        table[kind] = table.get(kind, 0) + p.numel()
    return dict(sorted(table.items(), key=lambda item: -item[1]))


def lora_table(model: nn.Module) -> dict[str, int]:
    """Return LoRA's parameters, r (in_features + out_features), of the modules that carry an adapter, by kind."""
    table: dict[str, int] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            kind = _kind(name)
            (r,) = layer.r.values()
            table[kind] = table.get(kind, 0) + r * (layer.in_features + layer.out_features)
    return table


def parameter_lines(model: nn.Module, rank: str | None) -> list[str]:
    """Return the lines of a printed table: each kind of module and the total, beside LoRA's count if there is an adapter.

    Call it before an engine splits the weights.

    Args:
        model: The wrapped model.
        rank: The rank in words ("r=8"); None for a method without one.
    """
    lora = {} if rank is None else lora_table(model)
    ours: dict[str, int] = {}
    for name, count in parameter_table(model).items():
        module = next((kind for kind in lora if name.startswith(f"{kind}.")), name)  # lora_A and lora_B share a line
        ours[module] = ours.get(module, 0) + count
    lines = [_line(kind, count, lora.get(kind)) for kind, count in ours.items()]
    all_parameters, total = sum(p.numel() for p in model.parameters()), sum(ours.values())
    of_lora = sum(lora.values()) + sum(count for kind, count in ours.items() if kind not in lora)
    share = f"in all, {100 * total / all_parameters:.2f}% of {all_parameters:,}"
    return [*lines, _line(share, total, of_lora if lora else None, f" at {rank}")]


def _line(what: str, ours: int, lora: int | None, rank: str = "") -> str:
    beside = "" if lora is None else f"; LoRA{rank} {lora:,} ({100 * (ours / lora - 1):+.2f}%)"
    return f"  {ours:>14,}  {what}{beside}"


def _kind(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdigit())
