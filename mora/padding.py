"""The length to which a batch of training sequences is padded. Imports no torch, so that plans can use it."""

from __future__ import annotations

SHAPE_STEP = 64  # tokens


def padded_length(length: int, longest: int) -> int:
    """Return the padded length, of which there are few: the next multiple of SHAPE_STEP, but at most `longest`."""
    return min(longest, -(-length // SHAPE_STEP) * SHAPE_STEP)
