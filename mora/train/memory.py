"""Peaks of the GPU memory that a run allocates: that of training apart from those of scoring and of saving the model.

Checkpoints during the run count as training. Loading the model is not measured.
"""

from __future__ import annotations

from typing import Any

import torch


class Peaks:
    """Peaks of this process's memory, in bytes. They are None on a CPU; that of training, also if nothing was trained.

    A run is divided into stretches, each of training or of other work. torch keeps one peak at a time, so it is reset for
    each stretch.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self.training: int | None = None
        self.allocated: int | None = None
        self.reserved: int | None = None
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def end_stretch(self, training: bool) -> None:
        """End a stretch of training, or of other work, and begin the next."""
        if not self._on_gpu:
            return
        peak = torch.cuda.max_memory_allocated()
        self.allocated = max(peak, self.allocated or 0)
        self.reserved = max(torch.cuda.max_memory_reserved(), self.reserved or 0)
        if training:
            self.training = max(peak, self.training or 0)
        torch.cuda.reset_peak_memory_stats()

    def facts(self) -> dict[str, Any]:
        """Return the peaks under their names in a result."""
        return {
            "peak_memory_bytes": self.allocated,
            "train_peak_memory_bytes": self.training,
            "reserved_memory_bytes": self.reserved,
        }
