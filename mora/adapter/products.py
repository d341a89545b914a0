"""y = W x + scaling * T(M(S x)) as plain matrix products: S and T are f_comp and f_decomp written out as matrices.

With a small model the GPU waits for the CPU, so the time is that of the operations that a layer launches, and of the Python
between them. Beside the base's own, a layer launches three here in the forward pass (four with a bias, which is added
last) and five in the backward pass, all of torch's autograd; PEFT's LoRA launches four and six. The code is the same for
every operator. The price is arithmetic: 4 n R (K + D) operations per token forward and backward, where n is the number of
blocks that M acts on. Most of them multiply by zeros, which costs nothing on a GPU that waits, but too much on a large
model. In bf16 the cosines of a rotation are rounded to bf16.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mora.sizes import aligned

from . import operators
from .operators import Decouple, Operator

FEW = 2**33  # multiply-adds of W x; above, padding r_hat to a multiple of 8 pays off, for cuBLAS's fast kernels
ROWS = 1024  # rows of S that are computed at once; all rows of a wide layer would take hundreds of MB


def adapted_linear(
    x: Tensor,
    square: Tensor,
    operator: Operator,
    weight_DK: Tensor | None,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """Return x (..., in_features) -> (..., out_features), as `kernels.adapted_linear` does.

    `square` is scaling * M in the compute dtype; the other arguments are those of that function.
    """
    dtype, R = square.dtype, operator.r_hat
    side = R if x.numel() * operator.out_features < FEW else aligned(R)
    S, T = matrices(operator, side, x.device, dtype)
    x2 = x if x.dim() == 2 else x.reshape(-1, operator.in_features)
    c = F.dropout(x2, dropout) if dropout else x2
    c = (c if c.dtype == dtype else c.to(dtype)) @ S
    if side != R:
        square = F.pad(square, (0, side - R, 0, side - R))
    width = S.shape[1]
    z = F.linear(c, square) if width == side else F.linear(c.view(-1, side), square).view(-1, width)
    if weight_DK is None:
        y = z @ T
    else:
        y = F.linear(x2, weight_DK)
        y = y.addmm_(z, T) if y.dtype == dtype else y + (z @ T).to(y.dtype)
        if bias is not None:
            y += bias
    return y if x is x2 else y.view(*x.shape[:-1], operator.out_features)


@functools.lru_cache(maxsize=256)
def size(operator: Operator) -> int:
    """Return how many numbers S and T hold, without r_hat's padding."""
    return _blocks(operator) * operator.r_hat * (operator.in_features + operator.out_features)


def _blocks(operator: Operator) -> int:
    """Return n, the number of blocks that M acts on; 1 for operators without blocks."""
    return operator.n_multiplied if isinstance(operator, Decouple) else 1


def matrices(operator: Operator, side: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return S, (in_features, n side), and T, (n side, out_features), with zeros from r_hat to `side`.

    n is the number of blocks that M acts on, 1 for operators without blocks. Both are computed in fp32 or wider and rounded
    once.
    """
    if torch.compiler.is_compiling():
        o = operator
        fields = (o.in_features, o.out_features, o.r_hat, o.pad, o.groups, o.split, o.pairs, o.overflow)
        return _constant(side, device, dtype, type(o).__name__, *fields)
    return _made(operator, side, device, dtype)


@torch.compiler.assume_constant_result  # the graph would make them for each layer and step
def _constant(side: int, device: torch.device, dtype: torch.dtype, kind: str, *fields: Any) -> tuple[Tensor, Tensor]:
    """`matrices` of an operator by its fields, since torch 2.11 takes no object of ours as a constant."""
    return _made(getattr(operators, kind)(*fields), side, device, dtype)


@functools.lru_cache(maxsize=64)  # some MB each, on the GPU
def _made(operator: Operator, side: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.no_grad():  # a cached inference tensor would break the next training step
        wide = torch.promote_types(dtype, torch.float32)
        K, parts = operator.in_features, []
        for start in range(0, K, ROWS):
            inputs = torch.zeros(min(ROWS, K - start), K, device=device, dtype=wide)
            inputs.diagonal(start).fill_(1)
            parts.append(operator.compress(inputs).view(len(inputs), -1, operator.r_hat))
        S = torch.cat(parts)
        n, R = S.shape[1:]
        units = torch.eye(n * R, device=device, dtype=wide)
        T = operator.decompress(units.view(n * R, n, R) if isinstance(operator, Decouple) else units)
        missing = side - R
        S = F.pad(S, (0, missing)).flatten(1)
        T = F.pad(T.view(n, R, -1), (0, 0, 0, missing)).flatten(0, 1)
        return S.to(dtype), T.to(dtype)
