"""The size of MoRA's square matrix, and the operator that goes with it. Imports no torch, so that plans can use it."""

from __future__ import annotations

import math
from typing import Literal

from mora.choices import Rounding

MAX_INPUTS_PER_GROUP = 8  # ours: the paper shares groups of 4 at r=128 and calls 16, at r=8, too many (section 4)
ALIGNMENT = 8  # numbers, 16 bytes in bf16: cuBLAS needs this alignment of rows for its fast kernels


def r_hat_for(in_features: int, out_features: int, r: int, rounding: Rounding = "floor", even: bool = False) -> int:
    """Return r_hat = floor(sqrt((d + k) r)), the side of M at LoRA's parameter count for rank r (section 4).

    Args:
        in_features: The module's k.
        out_features: The module's d.
        r: LoRA's rank.
        rounding: "floor" is the paper's; "official" is `int(sqrt(...) + 0.5)`, which can exceed LoRA's budget.
        even: Whether to round down to an even number, which rotation needs for its pairs.

    Returns:
        A positive int, not yet clamped to min(in_features, out_features).
    """
    area = (in_features + out_features) * r
    r_hat = math.isqrt(area) if rounding == "floor" else int(math.sqrt(area) + 0.5)
    return max(r_hat // 2 * 2, 2) if even else r_hat


def wanted_and_clamped_r_hat(
    in_features: int, out_features: int, r: int, operator: str, rounding: Rounding
) -> tuple[int, int]:
    """Return the r_hat that follows from r, and the r_hat clamped to the module's size. For rotation both are even."""
    even, limit = operator == "rotation", min(in_features, out_features)
    wanted = r_hat_for(in_features, out_features, r, rounding, even)
    return wanted, min(wanted, limit // 2 * 2 if even else limit)


def auto_operator(hidden_size: int, r: int, rounding: Rounding = "floor") -> Literal["rotation", "sharing"]:
    """Return what operator="auto" resolves to in a model of that width: rotation if groups would have too many inputs."""
    r_hat = r_hat_for(hidden_size, hidden_size, r, rounding)
    return "rotation" if hidden_size > MAX_INPUTS_PER_GROUP * r_hat else "sharing"


def aligned(r_hat: int) -> int:
    """Return r_hat rounded up to a multiple of ALIGNMENT: the length in memory of a compressed block, padded with zeros."""
    return math.ceil(r_hat / ALIGNMENT) * ALIGNMENT
