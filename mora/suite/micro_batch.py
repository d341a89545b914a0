"""The micro batch of a run whose configuration leaves it open: the largest that fits by the plan. Imports no torch.

If it does not fit after all, it is halved.
"""

from __future__ import annotations

import os
from pathlib import Path

from mora.config import RunConfig

from .gpus import memory, visible

CPU_FLOPS = 10e9  # per core and second; an assumption, for bf16 on CPUs without instructions for it
MARK = "out_of_memory.json"  # the file that a worker leaves in the run's folder (mora/train/__main__.py)


def left_open(config: RunConfig) -> bool:
    """Return whether the configuration says nothing about how much goes through the model at once."""
    return config.hardware.micro_batch_size is None and config.hardware.micro_batch_tokens is None


def fitted(config: RunConfig, gpu_bytes: float | None = None) -> RunConfig:
    """Return the run with the largest micro batch that should fit on its GPU.

    If the plan says that none fits, it is 1, since a plan may err. Nothing changes on a CPU, or if the model's shape is
    not known. `gpu_bytes` is the memory of the GPU to plan for; by default, it is that of this machine's smallest.
    """
    if config.hardware.device == "cpu" or not left_open(config) or not config.method.trains:
        return config
    if (there := gpu_bytes or memory()) is None:
        return config
    from mora.planner.cost import max_length
    from mora.planner.memory import fitting_micro_batch

    try:
        micro = fitting_micro_batch(config, max_length(config), there) or 1
    except ValueError:  # a shape or method that the plan cannot count
        return config
    return config if micro == config.micro_batch_size else _with(config, micro)


def halved(config: RunConfig) -> RunConfig | None:
    """Return the run with the next smaller micro batch, at most half, that divides a rank's share; None if it is 1."""
    share, micro = config.task.train.global_batch_size // config.hardware.world_size, config.micro_batch_size
    smaller = max((n for n in range(1, micro // 2 + 1) if share % n == 0), default=None)
    return None if smaller is None else _with(config, smaller)


def ran_out_of_memory(folder: Path) -> bool:
    """Return whether the last worker left the mark of an out-of-memory error, and remove the mark."""
    mark = folder / MARK
    marked = mark.is_file()
    mark.unlink(missing_ok=True)
    return marked


def too_slow(config: RunConfig) -> str | None:
    """Return a warning if a run that is meant for a GPU is about to start on a CPU, with the time that it may take."""
    if config.scale.name == "smoke" or config.hardware.device == "cuda" or visible():
        return None
    from mora.planner.cost import length_of, max_length
    from mora.planner.counts import flops_per_token

    text = f"scale {config.scale.name} is meant for a GPU, and this machine has none"
    try:
        tokens = length_of(config).tokens or 0
        hours = tokens * flops_per_token(config, max_length(config)) / (CPU_FLOPS * (os.cpu_count() or 1)) / 3600
    except ValueError:  # a shape or method that the plan cannot count
        return text
    return f"{text}: about {hours:,.0f} hours; SCALE=smoke (scale=smoke) shows the path in minutes"


def _with(config: RunConfig, micro: int) -> RunConfig:
    return config.model_copy(update={"hardware": config.hardware.model_copy(update={"micro_batch_size": micro})})
