"""What several tests ask of a model with adapters."""

from __future__ import annotations

import torch
from torch import nn


def assert_close(actual, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def trainable(model: nn.Module) -> set[str]:
    return {n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad}
