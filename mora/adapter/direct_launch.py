"""Triton kernels launched without Triton's own look-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class DirectLaunch:
    """Launches one kernel, with one set of constants, on tensors of one kind.

    Triton's own launch works out at every call which compiled kernel fits the arguments, which takes Python longer than all
    else that is done here. What decides is the same for all tensors of a kind: their types, strides and device, and that
    their addresses are multiples of 16. So the first call asks Triton, and the next ones launch what it found, with
    addresses for tensors. A call with another address goes through Triton again. A number must have the same Python type at
    every call, and a kernel that gets an integer which varies must name it in `do_not_specialize`.
    """

    def __init__(self, kernel: Any, constants: dict[str, Any]) -> None:
        """constants: what the kernel is compiled for, in the order of its parameters."""
        self._kernel, self._constants, self._values = kernel, constants, tuple(constants.values())
        self._compiled: Any = None  # after the first call; in Triton's interpreter it stays None

    def __call__(self, grid: tuple[int, int, int], tensors: Sequence[Tensor], numbers: Sequence[float]) -> None:
        device = tensors[0].get_device()
        # Triton launches on the current device, wherever its arguments are.
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self(grid, tensors, numbers)
        addresses = [tensor.data_ptr() for tensor in tensors]
        every = 0
        for address in addresses:
            every |= address
        if every % 16 == 0 and self._compiled is not None:
            self._compiled[grid](*addresses, *numbers, *self._values)
            return
        compiled = self._kernel[grid](*tensors, *numbers, **self._constants)
        if every % 16 == 0:
            self._compiled = compiled
