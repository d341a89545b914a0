"""Every operator with every option that it has, and layers of all kinds of shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mora.adapter.operators import OPERATORS, Operator


def product(**choices) -> list[dict[str, str]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


PADS = ("circular", "zeros")
OVERFLOWS = ("drop", "fold")
GROUPS = ("modulo", "contiguous", "contiguous-modulo", "modulo-contiguous")
OPTIONS = {
    "truncation": [{}],
    "sharing": product(groups=GROUPS, split=("uneven", "padded"), pad=PADS),
    "decouple": product(pad=PADS, overflow=OVERFLOWS),
    "rotation": product(pad=PADS, overflow=OVERFLOWS, pairs=("half_split", "interleaved")),
}
SETTINGS = [(name, options) for name, all_options in OPTIONS.items() for options in all_options]

# in_features, out_features, r_hat
SHAPES = [
    (12, 12, 4),  # the paper's case: d = k, divided by r_hat
    (12, 12, 12),  # one block, one input per group
    (10, 10, 4),  # padding
    (7, 13, 4),  # more blocks of outputs than of inputs, neither even
    (4, 15, 4),  # r_hat = in
    (13, 7, 6),  # fewer blocks of outputs than of inputs, neither even
    (31, 9, 4),  # several rounds of blocks beyond the outputs
    (15, 4, 4),  # r_hat = out
    (64, 16, 10),  # grouped-query attention: k and v projections
    (5, 7, 1),  # a single number for M
    (9, 9, 5),  # odd r_hat
]


def setting_id(value) -> str:
    return "-".join([value[0], *value[1].values()])


def shape_id(value) -> str:
    return "{}to{}by{}".format(*value)


each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=setting_id)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=shape_id)


def build(setting: tuple[str, dict], shape: tuple[int, int, int]) -> Operator:
    name, options = setting
    if name == "rotation" and shape[2] % 2:
        shape = (*shape[:2], shape[2] + 1)
    return OPERATORS[name](*shape, **options)


def random_M(operator: Operator, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(operator.r_hat, operator.r_hat, dtype=dtype)
