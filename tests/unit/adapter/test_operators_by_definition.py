"""The delta weight of every operator, entry by entry, and its rank."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from operator_cases import build, each_setting, each_shape, random_M
from torch import Tensor

from mora.adapter.operators import OPERATORS, Operator

# --- the paper's matrices, written out -------------------------------------------------------------------------------


def test_truncation_is_equation_5():
    M = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = [[1.0, 2.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert OPERATORS["truncation"](3, 4, 2).delta_weight(M).tolist() == expected


@pytest.mark.parametrize(
    ("groups", "g_out", "g_in"),
    [
        ("modulo", [0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 2]),
        ("contiguous", [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]),
        ("contiguous-modulo", [0, 1, 2, 0, 1, 2], [0, 0, 1, 1, 2, 2]),
        ("modulo-contiguous", [0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2]),
    ],
)
def test_sharing_is_equation_7_with_the_groups_of_algorithm_1(groups, g_out, g_in):
    M = torch.arange(9.0).reshape(3, 3)
    delta = OPERATORS["sharing"](6, 6, 3, groups=groups).delta_weight(M)
    assert delta.tolist() == [[M[g_out[i], g_in[j]].item() for j in range(6)] for i in range(6)]


def test_decouple_is_equation_8():
    M = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = [
        [1.0, 2.0, 0.0, 0.0, 0.0, 0.0],
        [3.0, 4.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 1.0, 2.0, 0.0, 0.0],
        [0.0, 0.0, 3.0, 4.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1.0, 2.0],
        [0.0, 0.0, 0.0, 0.0, 3.0, 4.0],
    ]
    assert OPERATORS["decouple"](6, 6, 2).delta_weight(M).tolist() == expected


def rotation_matrix(block: int, r_hat: int, pairs: str) -> Tensor:
    """Eq. 10 and 11: a plane rotation by block * theta_j for each pair of coordinates."""
    R = torch.zeros(r_hat, r_hat, dtype=torch.float64)
    for j in range(1, r_hat // 2 + 1):
        angle = block * 10000.0 ** (-2 * (j - 1) / r_hat)
        a, b = (2 * j - 2, 2 * j - 1) if pairs == "interleaved" else (j - 1, j - 1 + r_hat // 2)
        R[a, a], R[a, b] = math.cos(angle), -math.sin(angle)
        R[b, a], R[b, b] = math.sin(angle), math.cos(angle)
    return R


@pytest.mark.parametrize("pairs", ["half_split", "interleaved"])
def test_rotation_is_equations_9_to_11(pairs):
    operator = OPERATORS["rotation"](18, 18, 6, pairs=pairs)
    M, x = random_M(operator), torch.randn(18, dtype=torch.float64)
    R = [rotation_matrix(block, 6, pairs) for block in range(3)]
    a = torch.stack([R[i] @ x[6 * i : 6 * i + 6] for i in range(3)])
    torch.testing.assert_close(operator.compress(x), a, rtol=0, atol=1e-14)
    P = torch.block_diag(*(M @ R[i] for i in range(3)))
    torch.testing.assert_close(operator.delta_weight(M), P, rtol=0, atol=1e-14)


# --- shapes that the paper leaves out: padding, cutting, tiling and folding ------------------------------------------


def held_by(j: int, width: int, padded_width: int, pad: str) -> list[int]:
    """Where input j stands once the inputs are padded."""
    return [j] + ([width + j] if pad == "circular" and width + j < padded_width else [])


def group_of(index: int, width: int, r_hat: int, kind: str, split: str) -> int:
    if kind == "modulo":
        return index % r_hat
    if split == "padded":
        return index // math.ceil(width / r_hat)
    sizes = [width // r_hat + (g < width % r_hat) for g in range(r_hat)]
    return next(g for g in range(r_hat) if index < sum(sizes[: g + 1]))


def sharing_by_entries(operator: Operator, M: Tensor) -> Tensor:
    (K, D, R), (kind_in, kind_out) = shape_of(operator), (operator.groups.split("-") * 2)[:2]
    padded = K if (kind_in, operator.split) == ("contiguous", "uneven") else math.ceil(K / R) * R
    delta = torch.zeros(D, K, dtype=M.dtype)
    for i, j in itertools.product(range(D), range(K)):
        row = group_of(i, D, R, kind_out, operator.split)
        for p in held_by(j, K, padded, operator.pad):
            delta[i, j] += M[row, group_of(p, padded, R, kind_in, operator.split)]
    return delta


def blocks_by_entries(operator: Operator, M: Tensor, P: list[Tensor]) -> Tensor:
    """Decouple or rotation, P being the matrix of each block of inputs."""
    K, D, R = shape_of(operator)
    n_in, n_out = math.ceil(K / R), math.ceil(D / R)
    delta = torch.zeros(D, K, dtype=M.dtype)
    for i, j in itertools.product(range(D), range(K)):
        for p in held_by(j, K, n_in * R, operator.pad):
            block, target = p // R, i // R
            tiled = n_out >= n_in and target % n_in == block
            cut = n_out < n_in and target == block
            folded = n_out < n_in and operator.overflow == "fold" and target == block % n_out
            if tiled or cut or folded:
                delta[i, j] += P[block][i % R, p % R]
    return delta


def shape_of(operator: Operator) -> tuple[int, int, int]:
    return operator.in_features, operator.out_features, operator.r_hat


@each_shape
@each_setting
def test_delta_weight_equals_its_definition_entry_by_entry(setting, shape):
    name, operator = setting[0], build(setting, shape)
    M = random_M(operator)
    blocks = range(math.ceil(operator.in_features / operator.r_hat))
    if name == "truncation":
        expected = torch.zeros(shape[1], shape[0], dtype=M.dtype)
        expected[: operator.r_hat, : operator.r_hat] = M
    elif name == "sharing":
        expected = sharing_by_entries(operator, M)
    elif name == "decouple":
        expected = blocks_by_entries(operator, M, [M for _ in blocks])
    elif name == "rotation":
        turned = [M @ rotation_matrix(block, operator.r_hat, operator.pairs) for block in blocks]
        expected = blocks_by_entries(operator, M, turned)
    else:
        pytest.fail(f"this test does not say what {name} is")
    torch.testing.assert_close(operator.delta_weight(M), expected, rtol=0, atol=1e-13)


# --- rank ------------------------------------------------------------------------------------------------------------


@each_shape
@each_setting
def test_sharing_has_rank_r_hat_and_blocks_have_full_rank(setting, shape):
    operator = build(setting, shape)
    rank = torch.linalg.matrix_rank(operator.delta_weight(random_M(operator))).item()
    if operator.in_blocks:
        assert rank == min(operator.in_features - operator.ignored_inputs(), operator.out_features)
    elif operator.split == "padded" and operator.groups != "modulo":
        assert rank <= operator.r_hat  # groups may lie wholly in the padding
    else:
        assert rank == operator.r_hat


def test_padded_groups_that_lie_in_the_padding_leave_rows_and_columns_of_M_idle():
    # Groups of ceil(13 / 6) = 3 inputs and ceil(7 / 6) = 2 outputs: 5 and 4 of the 6 groups are used.
    operator = OPERATORS["sharing"](13, 7, 6, groups="contiguous", split="padded", pad="zeros")
    M = random_M(operator).requires_grad_()
    operator.delta_weight(M).square().sum().backward()
    used = torch.zeros(6, 6, dtype=torch.bool)
    used[:4, :5] = True
    assert torch.equal(M.grad != 0, used)
