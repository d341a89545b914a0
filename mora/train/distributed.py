"""Communication between ranks. With a single rank, none of it happens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from mora.data.batches import Batch
from mora.errors import ConfigError
from mora.ranks import all_gather_value, barrier, rank, world_size

from .interface import StepBatches

__all__ = [
    "RankShard",
    "all_gather_value",
    "any_rank",
    "barrier",
    "device_of_rank",
    "process_group",
    "rank",
    "single_process_env",
    "sum_gradients",
    "sum_over_ranks",
    "world_size",
]


@contextmanager
def process_group(wanted: int, device: torch.device) -> Iterator[None]:
    """Context manager: join the ranks that torchrun has started. A single process needs none.

    Raises:
        ConfigError: There are more or fewer ranks than `wanted`.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != wanted:
        raise ConfigError(
            f"the run needs {wanted} ranks (hardware.processes x hardware.nodes), but {started} were started: use run.py, "
            f"or torchrun with --nproc-per-node and --nnodes to match"
        )
    if wanted == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield
    except BaseException:
        if device.type != "cuda":  # NCCL would wait for ranks that never come; gloo needs it, or the other ranks abort
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def single_process_env() -> Iterator[None]:
    """Context manager: hide torchrun's variables, so that libraries (lm-eval) take this for a single process."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def device_of_rank(device: torch.device) -> torch.device:
    """Return the GPU of this rank if `device` is a GPU and several ranks share this machine."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum over the ranks, in place. All ranks must call."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over the ranks, in one message per dtype. All ranks must call."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for dtype in sorted({g.dtype for g in gradients}, key=str):
        chosen = [g for g in gradients if g.dtype == dtype]
        flat = torch.cat([g.flatten() for g in chosen])
        dist.all_reduce(flat)
        for g, summed in zip(chosen, flat.split([g.numel() for g in chosen]), strict=True):
            g.copy_(summed.view_as(g))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether any rank's flag is set, and wait for the device, which is the rank's own. All ranks must call."""
    if world_size() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item())


class RankShard:
    """This rank's share of the data: every world-size-th micro batch of a step, so that the ranks see each sample once."""

    def __init__(self, batches: StepBatches):
        self.batches = batches

    def micro_batches(self, step: int) -> Iterator[Batch]:
        return islice(self.batches.micro_batches(step), rank(), None, world_size())

    def loss_tokens(self, step: int) -> int:
        """Return the number of tokens with a loss in the whole step, so that the ranks' losses add up to the step's."""
        return self.batches.loss_tokens(step)
