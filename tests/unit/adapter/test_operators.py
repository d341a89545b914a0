"""What holds of every operator: values and gradients beside the delta weight, precision, state."""

from __future__ import annotations

import pickle
from typing import get_args

import pytest
import torch
from operator_cases import OPTIONS, build, each_setting, each_shape, random_M
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mora.adapter.operators import OPERATORS, Operator, rotation_table
from mora.choices import OperatorChoice


def forward(operator: Operator, x: Tensor, M: Tensor) -> Tensor:
    return operator.decompress(operator.compress(x) @ M.mT)


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
