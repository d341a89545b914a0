from __future__ import annotations

import itertools
import math
import pickle
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mora.adapter.operators import OPERATORS, Operator, rotation_table
from mora.choices import OperatorChoice
from mora.sizes import r_hat_for


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
    (12, 12, 12),  # one block, one input a group
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


def forward(operator: Operator, x: Tensor, M: Tensor) -> Tensor:
    return operator.decompress(operator.compress(x) @ M.mT)


def random_M(operator: Operator, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(operator.r_hat, operator.r_hat, dtype=dtype)


def inputs(width: int) -> dict[str, Tensor]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    return {
        "a vector": draw(width),
        "a batch": draw(3, width),
        "a batch of sequences": draw(2, 5, width),
        "an empty batch": draw(0, width),
        "a transposed batch": draw(width, 3).T,
        "every other feature": draw(3, 2 * width)[:, ::2],
        "an expanded vector": draw(width).expand(2, 4, width),
    }


@each_shape
@each_setting
def test_forward_equals_multiplication_by_delta_weight(setting, shape):
    operator = build(setting, shape)
    M = random_M(operator)
    delta = operator.delta_weight(M)
    assert delta.shape == shape[1::-1]
    for kind, x in inputs(shape[0]).items():
        y = forward(operator, x, M)
        assert y.shape == (*x.shape[:-1], shape[1]), kind
        torch.testing.assert_close(y, x @ delta.T, rtol=0, atol=1e-12, msg=kind)


@each_shape
@each_setting
def test_gradients_equal_those_through_delta_weight(setting, shape):
    operator = build(setting, shape)
    x = torch.randn(2, 3, shape[0], dtype=torch.float64, requires_grad=True)
    M = random_M(operator).requires_grad_()
    weights = torch.randn(2, 3, shape[1], dtype=torch.float64)
    by_forward = torch.autograd.grad((forward(operator, x, M) * weights).sum(), (x, M))
    by_delta = torch.autograd.grad((x @ operator.delta_weight(M).T * weights).sum(), (x, M))
    torch.testing.assert_close(by_forward, by_delta, rtol=0, atol=1e-12)


@each_shape
@each_setting
def test_adjoints_are_the_transposed_maps(setting, shape):
    operator = build(setting, shape)
    x, y = torch.randn(3, shape[0], dtype=torch.float64), torch.randn(3, shape[1], dtype=torch.float64)
    c = torch.randn_like(operator.compress(x))
    torch.testing.assert_close((operator.compress(x) * c).sum(), (x * operator.compress_adjoint(c)).sum())
    torch.testing.assert_close((operator.decompress(c) * y).sum(), (c * operator.decompress_adjoint(y)).sum())


@each_setting
def test_gradients_equal_finite_differences(setting):
    operator = build(setting, (7, 5, 2))
    x = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    M = random_M(operator).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, M: forward(operator, x, M), (x, M))
    assert torch.autograd.gradcheck(operator.delta_weight, (M,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_setting
def test_lower_precision_is_kept_and_close_to_float64(setting, dtype):
    operator = build(setting, (10, 10, 4))
    x, M = torch.randn(6, 10, dtype=dtype), random_M(operator, dtype)
    y, delta = forward(operator, x, M), operator.delta_weight(M)
    assert (operator.compress(x).dtype, y.dtype, delta.dtype) == (dtype, dtype, dtype)
    tolerance = 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), forward(operator, x.double(), M.double()), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(delta.double(), operator.delta_weight(M.double()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pairs", ["half_split", "interleaved"])
def test_rotation_of_bfloat16_is_computed_in_float32_and_rounded_once(pairs):
    operator = OPERATORS["rotation"](64, 64, 16, pairs=pairs)
    x = torch.randn(8, 64, dtype=torch.bfloat16)
    assert torch.equal(operator.compress(x), operator.compress(x.float()).bfloat16())


@each_shape
@each_setting
def test_ignored_inputs_are_the_zero_columns_of_delta_weight(setting, shape):
    operator = build(setting, shape)
    zero_columns = (operator.delta_weight(random_M(operator)) == 0).all(dim=0).sum().item()
    assert operator.ignored_inputs() == zero_columns


def test_ignored_inputs_of_llama_2_down_projection_are_62_percent_unless_folded():
    down_proj = (11008, 4096, 346)
    assert OPERATORS["rotation"](*down_proj).ignored_inputs() / 11008 == pytest.approx(0.623, abs=1e-3)
    assert OPERATORS["rotation"](*down_proj, overflow="fold").ignored_inputs() == 0


@each_setting
def test_compress_is_linear(setting):
    operator = build(setting, (13, 7, 6))
    x, y = torch.randn(2, 3, 13, dtype=torch.float64)
    combined = operator.compress(2.0 * x - 3.0 * y)
    torch.testing.assert_close(combined, 2.0 * operator.compress(x) - 3.0 * operator.compress(y), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("pad", "blocks"), [("circular", [[1, 2, 3, 4], [5, 1, 2, 3]]), ("zeros", [[1, 2, 3, 4], [5, 0, 0, 0]])]
)
def test_the_last_block_is_filled_by_the_chosen_pad(pad, blocks):
    x = torch.arange(1.0, 6.0)
    assert OPERATORS["decouple"](5, 5, 4, pad=pad).compress(x).tolist() == blocks
    # A group of "modulo" is a column of the blocks.
    assert OPERATORS["sharing"](5, 5, 4, pad=pad).compress(x).tolist() == torch.tensor(blocks).sum(0).tolist()


@pytest.mark.parametrize(
    ("split", "sums"), [("uneven", [1 + 2 + 3, 4 + 5, 6 + 7]), ("padded", [1 + 2 + 3, 4 + 5 + 6, 7 + 1 + 2])]
)
def test_contiguous_groups_are_split_as_chosen(split, sums):
    operator = OPERATORS["sharing"](7, 7, 3, groups="contiguous", split=split)
    assert operator.compress(torch.arange(1.0, 8.0)).tolist() == sums


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


# --- r_hat -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_features", "out_features", "r", "floor", "official"),
    [
        (4096, 4096, 8, 256, 256),  # LLaMA-2-7B attention, section 4 of the paper
        (4096, 4096, 128, 1024, 1024),  # section 4 of the paper
        (4096, 4096, 256, 1448, 1448),
        (11008, 4096, 8, 347, 348),  # LLaMA-2-7B FFN
        (4096, 11008, 8, 347, 348),
        (768, 2560, 128, 652, 653),  # 250M FFN
        (576, 576, 1, 33, 34),
    ],
)
def test_square_size_has_the_value_worked_out_by_hand(in_features, out_features, r, floor, official):
    assert r_hat_for(in_features, out_features, r) == floor
    assert r_hat_for(in_features, out_features, r, rounding="official") == official


def test_square_size_is_the_largest_square_within_the_budget_of_lora():
    for in_features, out_features, r in itertools.product((1, 20, 577, 4096), (3, 64, 11008), (1, 7, 8, 256)):
        budget = (in_features + out_features) * r
        r_hat = r_hat_for(in_features, out_features, r)
        assert r_hat**2 <= budget < (r_hat + 1) ** 2


def test_even_square_size_rounds_down_after_the_chosen_rounding_and_is_at_least_two():
    assert r_hat_for(11008, 4096, 8, even=True) == 346
    assert r_hat_for(11008, 4096, 8, rounding="official", even=True) == 348
    assert r_hat_for(4096, 4096, 8, even=True) == 256
    assert r_hat_for(1, 1, 1, even=True) == 2


def test_every_operator_is_tested_here_and_can_be_chosen():
    assert OPTIONS.keys() == OPERATORS.keys()
    assert {"auto", *OPERATORS} == {*get_args(OperatorChoice)}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("r_hat", [0, 8])
def test_an_r_hat_outside_the_layer_is_refused_with_both_numbers(name, r_hat):
    with pytest.raises(ValueError, match=rf"r_hat={r_hat} is outside 1\.\.6 .*in_features=6, out_features=9"):
        OPERATORS[name](6, 9, r_hat)


def test_rotation_refuses_an_odd_r_hat():
    with pytest.raises(ValueError, match="must be even: got r_hat=5"):
        OPERATORS["rotation"](9, 9, 5)


# --- state -----------------------------------------------------------------------------------------------------------


@each_setting
def test_operators_compare_and_hash_by_value_and_can_be_pickled(setting):
    operator = build(setting, (10, 10, 4))
    assert len({operator, build(setting, (10, 10, 4)), pickle.loads(pickle.dumps(operator))}) == 1
    assert operator != build(setting, (10, 10, 6))


def rotation_that_was_used_first_under(context) -> Operator:
    rotation_table.cache_clear()
    operator = OPERATORS["rotation"](20, 20, 6)
    with context:
        operator.compress(torch.randn(2, 20))
    return operator


def test_rotation_can_be_trained_after_it_was_first_used_in_inference_mode():
    operator = rotation_that_was_used_first_under(torch.inference_mode())
    M = torch.randn(6, 6, requires_grad=True)
    x = torch.randn(2, 20, requires_grad=True)
    forward(operator, x, M).sum().backward()
    assert x.grad.abs().sum() > 0


def test_rotation_computes_real_values_after_it_was_traced_with_fake_tensors():
    operator = rotation_that_was_used_first_under(FakeTensorMode())
    assert type(operator.compress(torch.randn(2, 20))) is Tensor
    # And the other way round, with the tables already in the cache.
    with FakeTensorMode():
        assert operator.compress(torch.randn(2, 20)).shape == (2, 4, 6)


def test_rotation_turns_block_i_by_i_and_keeps_lengths():
    x = torch.randn(4, 24, dtype=torch.float64)
    blocks = x.unflatten(-1, (4, 6))
    turned = OPERATORS["rotation"](24, 24, 6).compress(x)
    assert torch.equal(turned[:, 0], blocks[:, 0])
    assert not torch.isclose(turned[:, 1:], blocks[:, 1:]).all(dim=-1).any()
    torch.testing.assert_close(turned.norm(dim=-1), blocks.norm(dim=-1), rtol=0, atol=1e-12)
