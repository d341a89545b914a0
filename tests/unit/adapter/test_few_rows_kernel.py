"""Decoding's kernel, in Triton's interpreter where there is no GPU, against the delta weight in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import each_setting, each_shape, needs_interpreter, relative_error
from operator_cases import build

from mora.adapter import Operator, kernels


def added_and_expected(operator: Operator, rows: int, dtype: torch.dtype, square: torch.dtype | None = None):
    """W x + b plus half of an adapter's part: by decoding's kernel in `dtype`, M in `square`, and in fp64."""
    K, D, R = operator.in_features, operator.out_features, operator.r_hat
    x, W, b = (t.to(dtype) for t in (torch.randn(rows, 1, K), torch.randn(D, K), torch.randn(D)))
    M = torch.randn(R, R).to(square or dtype)
    with torch.no_grad():
        assert kernels._decoding_kernel(x, M, W, operator, M.dtype)
        y = kernels.adapted_linear(x, M, operator, 0.5, weight_DK=W, bias=b)
    assert y.dtype == dtype
    return y, x.double() @ (W.double() + 0.5 * operator.delta_weight(M.double())).mT + b.double()


@needs_interpreter
@each_shape
@each_setting
def test_the_kernel_adds_what_the_delta_weight_does(setting, shape):
    with kernels.use("triton"):
        for rows in (1, 3):
            assert relative_error(*added_and_expected(build(setting, shape), rows, torch.float32)) < 1e-5, rows


@needs_interpreter
@each_setting
def test_decoding_kernel_spans_several_tiles(setting):
    with kernels.use("triton"):
        assert relative_error(*added_and_expected(build(setting, (1100, 700, 90)), 1, torch.float32)) < 1e-5


@needs_interpreter
@pytest.mark.parametrize("shape", [(600, 40, 4), (40, 600, 4)], ids=["many blocks in", "many blocks out"])
@each_setting
def test_many_narrow_blocks(setting, shape):
    with kernels.use("triton"):
        assert relative_error(*added_and_expected(build(setting, shape), 1, torch.float32)) < 1e-5


@needs_interpreter
@pytest.mark.parametrize("setting", [("sharing", {}), ("rotation", {})], ids=["sharing", "rotation"])
def test_an_adapter_in_fp32_on_a_base_in_bf16(setting):
    with kernels.use("triton"):
        y, expected = added_and_expected(build(setting, (53, 90, 12)), 2, torch.bfloat16, square=torch.float32)
    assert relative_error(y, expected) < 1e-2


@needs_interpreter
def test_a_model_that_decodes_uses_it_and_one_that_trains_does_not(monkeypatch):
    from mora.adapter import few_rows_kernel

    calls = []
    monkeypatch.setattr(few_rows_kernel.FewRows, "add_to", lambda self, y, *rest: calls.append(len(y)) or y)
    operator = build(("rotation", {}), (48, 48, 16))
    M, W = torch.randn(16, 16, requires_grad=True), torch.randn(48, 48)

    def count(rows: int, M: torch.Tensor = M, form: kernels.Form = "triton", **options: Any) -> int:
        calls.clear()
        with kernels.use(form):
            kernels.adapted_linear(torch.randn(rows, 48), M, operator, **{"weight_DK": W} | options)
        return len(calls)

    assert count(1) == 0, "M trains"
    with torch.no_grad():
        assert count(1) == count(16) == 1
        assert count(17) == count(0) == 0
        assert count(1, form="torch") == count(1, form="products") == 0
        assert count(1, weight_DK=None) == 1, "a base that is called as a module"
        assert count(1, M=M.mT) == 0, "not contiguous"
        assert count(1, dropout=0.5) == 0
        assert count(1, dtype=torch.bfloat16) == 0, "M would have to be cast"
        with torch.autocast("cpu", torch.bfloat16):
            assert count(1) == 0


@needs_interpreter
@torch.no_grad()
def test_the_adapters_part_alone():
    operator, M, x = build(("rotation", {}), (48, 90, 16)), torch.randn(16, 16), torch.randn(2, 1, 48)
    with kernels.use("triton"):
        y = kernels.adapted_linear(x.bfloat16(), M, operator, 0.5)
    assert (y.dtype, y.shape) == (torch.float32, (2, 1, 90))
    assert relative_error(y, x.bfloat16().double() @ (0.5 * operator.delta_weight(M.double())).mT) < 1e-5


@needs_interpreter
@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 40])
def test_a_traced_layer_computes_all_of_itself_since_a_trace_does_not_record_a_kernel(rows):
    operator, M, W = build(("rotation", {}), (48, 48, 16)), torch.randn(16, 16), torch.randn(48, 48)
    x, example = torch.randn(rows, 48), torch.ones(rows, 48)
    with kernels.use("triton"):
        traced = torch.jit.trace(lambda x: kernels.adapted_linear(x, M, operator, weight_DK=W), example)
    expected = x.double() @ (W.double() + operator.delta_weight(M.double())).mT
    assert relative_error(traced(x), expected) < 1e-5


@needs_interpreter
def test_operators_that_it_cannot_compute():
    from mora.adapter.few_rows_kernel import few_rows

    assert few_rows(build(("rotation", {}), (4096, 4096, 90)))
    assert few_rows(build(("decouple", {}), (4096, 64, 4))), "few blocks reach the output"
    assert few_rows(build(("decouple", {}), (4096, 4096, 4))) is None
    assert few_rows(build(("truncation", {}), (64, 64, 8))) is None
