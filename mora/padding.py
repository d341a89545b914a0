"""How long a batch of training sequences becomes. Imports no torch, so that plans can ask."""

from __future__ import annotations

SHAPE_STEP = 64  # tokens


def padded_length(length: int, longest: int) -> int:
    """Return `length` padded to few different shapes: multiples of SHAPE_STEP, up to the longest sequence there is."""
    return min(longest, -(-length // SHAPE_STEP) * SHAPE_STEP)
