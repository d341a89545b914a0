"""How large MoRA's square matrix is, and which operator goes with it. Imports no torch, so that plans can ask."""

from __future__ import annotations

import math
from typing import Literal

from mora.choices import Rounding

MAX_INPUTS_PER_GROUP = 8  # ours: the paper shares groups of 4 at r=128 and calls 16, at r=8, too many (section 4)
ALIGNMENT = 8  # numbers: 16 bytes in bf16, what cuBLAS needs of a row for its fast kernels


def r_hat_for(in_features: int, out_features: int, r: int, rounding: Rounding = "floor", even: bool = False) -> int:
    """Return r_hat = floor(sqrt((d + k) r)), the side of M at LoRA's parameter count for rank r (section 4).

    Args:
        in_features: k of the module.
        out_features: d of the module.
        r: LoRA's rank.
        rounding: "floor" is the paper; "official" is `int(sqrt(...) + 0.5)`, which can exceed LoRA's budget.
        even: round down to an even number, which rotation needs for its pairs.

    Returns:
        A positive int, not yet clamped to min(in_features, out_features).
    """
    area = (in_features + out_features) * r
    r_hat = math.isqrt(area) if rounding == "floor" else int(math.sqrt(area) + 0.5)
    return max(r_hat // 2 * 2, 2) if even else r_hat


def wanted_and_clamped_r_hat(
    in_features: int, out_features: int, r: int, operator: str, rounding: Rounding
) -> tuple[int, int]:
    """Return r_hat as r asks for it, and what of it the module has room for; for rotation both are even."""
    even, limit = operator == "rotation", min(in_features, out_features)
    wanted = r_hat_for(in_features, out_features, r, rounding, even)
    return wanted, min(wanted, limit // 2 * 2 if even else limit)


def auto_operator(hidden_size: int, r: int, rounding: Rounding = "floor") -> Literal["rotation", "sharing"]:
    """Return what operator="auto" is in a model of that width: rotation if a group would hold too many inputs."""
    r_hat = r_hat_for(hidden_size, hidden_size, r, rounding)
    return "rotation" if hidden_size > MAX_INPUTS_PER_GROUP * r_hat else "sharing"


def aligned(r_hat: int) -> int:
    """Return r_hat, or the next multiple of ALIGNMENT: the length in memory of a compressed block, whose rest is zeros."""
    return math.ceil(r_hat / ALIGNMENT) * ALIGNMENT
