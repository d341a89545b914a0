"""The operators that have kernels, layers and inputs of all kinds, and what the kernels are compared with."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from operator_cases import GROUPS, PADS, product, setting_id, shape_id
from torch import Tensor, nn

from mora.adapter import OPERATORS, Operator, kernels

needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs Triton and no GPU; tests/gpu has these on a GPU",
)

BLOCK_OPTIONS = product(pad=PADS, overflow=("drop", "fold"))
SETTINGS = [
    *(("sharing", options) for options in product(groups=GROUPS, split=("uneven", "padded"), pad=PADS)),
    *(("decouple", options) for options in BLOCK_OPTIONS),
    *(("rotation", options | {"pairs": pairs}) for options in BLOCK_OPTIONS for pairs in ("half_split", "interleaved")),
]
SHAPES = [
    (12, 12, 4),
    (24, 24, 8),
    (10, 10, 4),
    (7, 13, 4),
    (31, 9, 4),
    (64, 16, 10),
    (15, 4, 4),
    (53, 90, 12),
    (10, 10, 10),
]
MAPS = ("compress", "decompress", "compress_adjoint", "decompress_adjoint")

each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=setting_id)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=shape_id)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


def expected_in_memory(operator: Operator, name: str, source: Tensor) -> Tensor:
    """The fp64 operator's result of one map, laid out as the kernel does: blocks padded with zeros."""
    from mora.sizes import aligned

    side = aligned(operator.r_hat)
    if name in ("decompress", "compress_adjoint"):
        blocks = source.view(len(source), -1, side)[..., : operator.r_hat]
        return getattr(operator, name)(blocks.squeeze(1) if isinstance(operator, OPERATORS["sharing"]) else blocks)
    blocks = getattr(operator, name)(source).reshape(len(source), -1, operator.r_hat)
    return nn.functional.pad(blocks, (0, side - operator.r_hat)).flatten(1)


def fused_and_expected(operator: Operator, x: Tensor, dtype: torch.dtype, bias: bool = False, scaling: float = 1.0):
    """Output and gradients (of x and M) of the fused function in `dtype`, and of the delta weight in fp64."""
    K, D, R = operator.in_features, operator.out_features, operator.r_hat
    x, W, M, b, g = (
        t.to(dtype) for t in (x, torch.randn(D, K), torch.randn(R, R), torch.randn(D), torch.randn(*x.shape[:-1], D))
    )
    x, M = x.detach().requires_grad_(), M.requires_grad_()
    y = kernels.adapted_linear(x, M, operator, scaling, weight_DK=W, bias=b if bias else None)
    fused = (y, *torch.autograd.grad(y, (x, M), g))
    x, M = x.detach().double().requires_grad_(), M.detach().double().requires_grad_()
    y = x @ (W.double() + scaling * operator.delta_weight(M)).mT + (b.double() if bias else 0)
    return fused, (y, *torch.autograd.grad(y, (x, M), g.double()))


def inputs(width: int) -> dict[str, Tensor]:
    return {
        "batch of one": torch.randn(1, width),
        "a vector": torch.randn(width),
        "sequences": torch.randn(2, 3, width),
        "transposed": torch.randn(width, 3).T,
        "every other feature": torch.randn(3, 2 * width)[:, ::2],
        "expanded": torch.randn(width).expand(2, 2, width),
        "part of a wider tensor": torch.randn(3, width + 5)[:, 2 : width + 2],
    }
