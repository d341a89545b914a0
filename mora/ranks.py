"""Collective operations of the ranks. If there is only one rank, they do nothing."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(value: Tensor) -> Tensor:
    """Set `value`, in place, to that of rank 0. All ranks must call."""
    if world_size() > 1:
        dist.broadcast(value, src=0)
    return value


def all_gather_value(value: T) -> list[T]:
    """Return each rank's value, in the order of the ranks. All ranks must call."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every rank has come here. All ranks must call."""
    all_gather_value(0.0)
