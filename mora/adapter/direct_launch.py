"""Launch Triton kernels without the look-up that Triton does at every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class DirectLaunch:
    """Launches one kernel, with one set of constants, on tensors of one kind.

    Triton's own launch works out at every call which compiled kernel fits the arguments, which takes longer than everything
    else in that call. The answer depends on the types, strides and device of the tensors, which are the same for all tensors
    of a kind, and on whether their addresses are multiples of 16. So the first call asks Triton, and the next ones launch
    the kernel that it found, with addresses in place of tensors. If an address is no multiple of 16, Triton is asked again.
    A number must have the same Python type at every call, and an integer that varies must be named in `do_not_specialize`.
    """

    def __init__(self, kernel: Any, constants: dict[str, Any]) -> None:
        """Take a kernel and the constants that it is compiled for, in the order of its parameters."""
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
