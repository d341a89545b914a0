"""y = x W + scaling * T(M(S x)) as plain matrix products: S and T are f_comp and f_decomp written out as matrices.

A small model waits for the CPU: what counts there is how many operations a layer launches, and how much Python runs between
them. Beside the base's own, a layer has three here forward and five backward, all of torch's autograd, where PEFT's LoRA
has four and six; every operator is the same code. The price is arithmetic, 4 N R (K + D) operations per token forward and
backward, most of which multiply by zeros: free on a GPU that waits, too much on a large model. In bf16 a rotation's cosines
are rounded to it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from .operators import Operator


def adapted_linear(
    x: Tensor,
    square: Tensor,
    operator: Operator,
    weight_KD: Tensor | None,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """Return x (..., in_features) -> (..., out_features), as `kernels.adapted_linear` does.

    `square` is scaling * M in the compute dtype; the other arguments are those of that function.
    """
    dtype = square.dtype
    S, T = matrices(operator, x.device, dtype)
    x2 = x.reshape(-1, operator.in_features)
    c = (F.dropout(x2, dropout) if dropout else x2).to(dtype) @ S
    z = F.linear(c.view(-1, operator.r_hat), square).view(-1, T.shape[0])
    if weight_KD is None:
        y = z @ T
    else:
        base = F.linear(x2, weight_KD.mT, bias)
        y = torch.addmm(base, z, T) if base.dtype == dtype else base + (z @ T).to(base.dtype)
    return y.view(*x.shape[:-1], operator.out_features)


@functools.lru_cache(maxsize=256)
def matrices(operator: Operator, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return S, (in_features, N r_hat), and T, (N r_hat, out_features), with N = 1 for operators that know no blocks.

    Computed in fp32, or wider, and rounded once.
    """
    with torch.inference_mode(False), torch.no_grad():  # a cached inference tensor would break the next training step
        wide = torch.promote_types(dtype, torch.float32)
        compressed = operator.compress(torch.eye(operator.in_features, dtype=wide))
        S = compressed.flatten(1)
        T = operator.decompress(torch.eye(S.shape[1], dtype=wide).view(-1, *compressed.shape[1:]))
        return S.to(device, dtype).contiguous(), T.to(device, dtype).contiguous()
