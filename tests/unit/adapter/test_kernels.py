"""The fused function and its Triton kernels, in the interpreter where there is no GPU, against the operators in fp64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from kernel_cases import (
    MAPS,
    each_setting,
    each_shape,
    expected_in_memory,
    fused_and_expected,
    inputs,
    needs_interpreter,
    relative_error,
)
from operator_cases import build, setting_id
from torch import Tensor

from mora.adapter import fused_linear, kernels, products


@needs_interpreter
@each_shape
@each_setting
def test_each_map_as_a_kernel_equals_the_operator(setting, shape):
    from mora.adapter.gather import maps
    from mora.adapter.gather_kernel import run

    operator = build(setting, shape)
    plans = maps(operator)
    for name in MAPS:
        plan = getattr(plans, name)
        width = plan.n_source if not plan.block_source else plans.compress.width
        source = torch.randn(3, width, dtype=torch.float64)
        out = run(plan, source.float(), torch.full((3, plan.width), torch.nan))  # poisoned: all of it must be written
        assert relative_error(out, expected_in_memory(operator, name, source)) < 1e-6, name


@needs_interpreter
@each_setting
def test_maps_of_several_tiles(setting):
    test_each_map_as_a_kernel_equals_the_operator(setting, (1100, 700, 90))


@needs_interpreter
def test_a_second_launch_is_the_first_without_triton(monkeypatch):
    from inspect import signature

    from mora.adapter import gather_kernel
    from mora.adapter.gather import maps

    launches: list[tuple[str, tuple[int, ...], tuple[object, ...]]] = []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *values: launches.append(("compiled", grid, values))

    class Kernel:
        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                names = list(signature(kernel.fn).parameters)
                assert list(constants) == names[len(arguments) :]
                addresses = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
                launches.append(("triton", grid, (*addresses, *constants.values())))
                return Compiled()

            return launch

    kernel = gather_kernel.gather_sum
    monkeypatch.setattr(gather_kernel, "gather_sum", Kernel())
    gather_kernel._launcher.cache_clear()
    plan = maps(build(("rotation", {}), (64, 64, 16))).compress
    memory = torch.zeros(6 * 64 + 16)
    source, out = memory[: 6 * 64].view(6, 64), torch.empty(6, plan.width)

    def ways(*sources: Tensor, **options: object) -> list[str]:
        launches.clear()
        for x in sources:
            gather_kernel.run(plan, x, out, **options)
        return [way for way, *_ in launches]

    assert ways(source, source) == ["triton", "compiled"]
    assert launches[0][1:] == launches[1][1:]  # grid and values
    assert ways(memory[1 : 6 * 64 + 1].view(6, 64), source) == ["triton", "compiled"]  # an odd address
    assert ways(torch.zeros(6, 128)[:, ::1][:, :64]) == ["triton"]  # another stride
    dropout = gather_kernel.Dropout(0.5, torch.zeros(1, dtype=torch.int64))
    assert ways(source, source, dropout=dropout, first_row=3) == ["triton", "compiled"]
    gather_kernel._launcher.cache_clear()


@pytest.mark.parametrize(
    "form", ["torch", "products", "products, aligned", pytest.param("triton", marks=needs_interpreter)]
)
@pytest.mark.parametrize(
    ("setting", "shape"),
    [
        (("sharing", {}), (31, 90, 12)),
        (("sharing", {"groups": "contiguous-modulo"}), (53, 20, 9)),
        (("rotation", {}), (53, 90, 12)),
        (("rotation", {"overflow": "fold", "pad": "zeros"}), (90, 31, 10)),
        (("rotation", {}), (90, 31, 10)),
        (("rotation", {}), (48, 48, 16)),
        (("rotation", {"pairs": "interleaved"}), (48, 48, 16)),
        (("decouple", {}), (48, 48, 16)),
    ],
    ids=["sharing", "groups", "rotation", "folded", "dropped", "in-place", "in-place-interleaved", "in-place-decouple"],
)
def test_output_and_gradients_equal_the_delta_weight(form, setting, shape, monkeypatch):
    torch.manual_seed(0)
    if form == "products, aligned":
        form = "products"
        monkeypatch.setattr(products, "FEW", 0)
    operator = build(setting, shape)
    with kernels.use(form):
        for kind, x in inputs(shape[0]).items():
            for actual, expected in zip(
                *fused_and_expected(operator, x, torch.float32, bias=True, scaling=0.5), strict=True
            ):
                assert relative_error(actual, expected) < 1e-5, kind
        for actual, expected in zip(
            *fused_and_expected(operator, torch.randn(64, shape[0]), torch.bfloat16), strict=True
        ):
            assert relative_error(actual, expected) < 1e-2


def test_what_the_products_are_made_of_is_counted_before_it_is_made():
    for setting, shape in ((("sharing", {}), (31, 90, 12)), (("rotation", {"overflow": "fold"}), (90, 31, 10))):
        operator = build(setting, shape)
        S, T = products.matrices(operator, operator.r_hat, torch.device("cpu"), torch.float32)
        assert products.size(operator) == S.numel() + T.numel()


def test_a_layer_that_waits_for_the_cpu_is_computed_as_products_on_a_gpu():
    def as_products(rows: int, shape: tuple[int, int, int], itemsize: int = 2, kind: str = "sharing", gpu: bool = True):
        x = SimpleNamespace(is_cuda=gpu, itemsize=itemsize, numel=lambda: rows * shape[0])
        with kernels.use("auto"):
            return kernels._as_products(x, build((kind, {}), shape))

    small, large = (576, 1536, 129), (4096, 4096, 256)  # SmolLM2's and LLaMA-2-7B's, r=8
    assert as_products(7200, small)
    assert as_products(1, large)
    assert not as_products(7200, small, gpu=False)
    assert not as_products(8192, large)
    assert not as_products(20_000, small, itemsize=4)
    assert not as_products(1, large, kind="rotation"), "S and T would be as large as W"


@needs_interpreter
def test_blocks_that_lie_in_x_as_they_are_are_multiplied_there():
    def in_blocks(shape, **options) -> bool:
        operator = build(("rotation", {}), shape)
        x, M = torch.randn(2, shape[0]), torch.randn(shape[2], shape[2], requires_grad=True)
        with kernels.use("triton"):
            return kernels.adapted_linear(x, M, operator, **options).grad_fn.in_blocks

    assert in_blocks((48, 48, 16))
    assert not in_blocks((48, 48, 12))  # not aligned
    assert not in_blocks((48, 32, 16))  # not square
    assert not in_blocks((50, 50, 16))  # padded
    assert not in_blocks((48, 48, 16), dropout=0.1)
    assert not in_blocks((48, 48, 16), dtype=torch.bfloat16)


@each_setting
def test_gradients_of_the_torch_form_equal_finite_differences(setting):
    operator = build(setting, (7, 5, 2))
    W, b = torch.randn(7, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    M = torch.randn(operator.r_hat, operator.r_hat, dtype=torch.float64, requires_grad=True)
    for weight_DK, bias in ((W.mT, b), (W.mT, None), (None, None)):

        def function(x: Tensor, M: Tensor, weight_DK=weight_DK, bias=bias) -> Tensor:
            return kernels.adapted_linear(x, M, operator, 0.5, weight_DK=weight_DK, bias=bias)

        assert torch.autograd.gradcheck(function, (x, M))


@needs_interpreter
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_rows_in_parts_give_the_same_as_in_one(dropout, monkeypatch):
    operator = build(("rotation", {}), (53, 90, 12))
    x, M = torch.randn(37, 53, requires_grad=True), torch.randn(12, 12, requires_grad=True)
    W, g = torch.randn(90, 53), torch.randn(37, 90)

    def results() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        with kernels.use("triton"):
            y = kernels.adapted_linear(x, M, operator, weight_DK=W, dropout=dropout)
            return (y, *torch.autograd.grad(y, (x, M), g))

    whole = results()
    monkeypatch.setattr(fused_linear, "CHUNK_BYTES", 2000)
    assert fused_linear._rows_of_a_part(37, 80 * 4, 5) < 10
    torch.testing.assert_close(results(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 1023, 1025, 5003])
def test_the_sum_over_rows_leaves_none_out_however_it_is_split(rows):
    dz, c = torch.randn(rows, 8), torch.randn(rows, 8)
    assert relative_error(fused_linear._split_outer(dz, c), dz.double().mT @ c.double()) < 1e-5


def test_a_square_at_an_odd_address_is_multiplied_as_a_copy_at_an_aligned_one():
    M = torch.randn(16 * 16 + 1)[1:].view(16, 16)
    assert M.data_ptr() % 16
    square = fused_linear._aligned_square(M, 16, torch.float32, 1.0)
    assert square.data_ptr() % 16 == 0
    assert torch.equal(square, M)


@needs_interpreter
@pytest.mark.parametrize("setting", [("sharing", {}), ("rotation", {})], ids=setting_id)
def test_dropout_masks_the_adapters_input_alike_in_forward_and_backward(setting):
    operator = build(setting, (12, 12, 12))  # one block, not turned: f_comp is the identity
    M, x = torch.eye(12), torch.rand(1100, 12).add(1).requires_grad_()
    torch.manual_seed(3)
    with kernels.use("triton"):
        y = kernels.adapted_linear(x, M.requires_grad_(), operator, dropout=0.25)
        dx, dM = torch.autograd.grad(y, (x, M), torch.ones_like(y))
        again = kernels.adapted_linear(x, M, operator, dropout=0.25)
        torch.manual_seed(3)
        repeated = kernels.adapted_linear(x, M, operator, dropout=0.25)
    kept = y != 0
    torch.testing.assert_close(y, torch.where(kept, x / 0.75, 0))
    torch.testing.assert_close(dx, torch.where(kept, 1 / 0.75, 0.0))
    torch.testing.assert_close(dM, y.sum(0).expand(12, 12))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)  # sd 0.0056
    assert torch.equal(repeated, y)
    assert not torch.equal(again, y)
    for shifted in (kept.roll(1, 0), kept.roll(1, 1), again != 0):  # independent of its neighbours and of other calls
        assert (kept & shifted).float().mean().item() == pytest.approx(0.75**2, abs=0.03)


@needs_interpreter
@pytest.mark.parametrize("seed", [1, 0x5DEECE66 << 32, -1])
def test_both_halves_of_the_seed_of_dropout_count(seed):
    from mora.adapter.gather import maps
    from mora.adapter.gather_kernel import Dropout, run

    plan = maps(build(("sharing", {}), (16, 16, 16))).compress

    def kept(seed: int) -> Tensor:
        return run(plan, torch.ones(200, 16), torch.empty(200, 16), Dropout(0.5, torch.tensor([seed]))) != 0

    assert 0.4 < (kept(0) == kept(seed)).float().mean() < 0.6


def test_backward_keeps_the_smaller_of_input_and_compressed_input():
    def saved(setting, shape) -> int:
        operator = build(setting, shape)
        x, M = torch.randn(4, shape[0], requires_grad=True), torch.randn(shape[2], shape[2], requires_grad=True)
        y = kernels.adapted_linear(x, M, operator, weight_DK=torch.randn(shape[1], shape[0]))
        return max(t.numel() // 4 for t in y.grad_fn.saved_tensors if t is not None and t.shape[0] == 4)

    assert saved(("sharing", {}), (32, 32, 8)) == 8
    assert saved(("rotation", {}), (33, 40, 8)) == 33
    assert saved(("rotation", {}), (64, 16, 8)) == 16  # two blocks of eight reach the output
    assert saved(("rotation", {"overflow": "fold"}), (64, 16, 8)) == 16
