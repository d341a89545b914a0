"""What a run ran on, as its result records it: package versions, hardware, and whether it had the GPU to itself."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from mora.config.schema import RunConfig

from .distributed import world_size

PACKAGES = ("torch", "transformers", "peft", "lm_eval", "datasets", "numpy")
IF_INSTALLED = ("triton", "deepspeed", "liger-kernel")
# Bytes in use on a GPU beyond what this process has reserved; its own context and NCCL's buffers hold less.
BY_OTHERS = 3 * 2**30


def versions() -> dict[str, str]:
    """Return the versions of what decides numbers and speed: Python, packages, and CUDA if torch was built with it."""
    found = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    for package in IF_INSTALLED:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def others_hold_memory(device: torch.device) -> bool:
    """Return whether other programs hold more than 3 GiB on the GPU now, whoever started them."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved() > BY_OTHERS


def hardware_facts(config: RunConfig, device: torch.device, shared: bool) -> dict[str, Any]:
    """Return the device, the number of runs side by side on it, and how the ranks share the work.

    `shared` says that other programs held GPU memory, which counts even if MORA_SIDE_BY_SIDE does not count them.
    """
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {
        "device": name,
        "runs_side_by_side": max(int(os.environ.get("MORA_SIDE_BY_SIDE", 1)), 1 + shared),
        "ranks": world_size(),
        "parallel": config.parallel,
        "gradient_checkpointing": config.hardware.gradient_checkpointing,
    }
