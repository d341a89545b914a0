"""The forms of the fused function in a layer: which one is taken, and that all of them give the same."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import relative_error
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from mora.adapter import OPERATORS, kernels


def test_the_form_can_be_switched_and_a_wrong_name_is_refused(make_mlp, adapt, x, mora_layers, monkeypatch):
    layer = mora_layers(adapt(make_mlp(), operator="rotation"))["0"]
    fused = layer(x)
    assert (
        "AdaptedLinear" in type(fused.grad_fn).__name__
        or "AdaptedLinear" in type(fused.grad_fn.next_functions[0][0]).__name__
    )
    with kernels.use("reference"):
        plain = layer(x)
    assert "AdaptedLinear" not in type(plain.grad_fn).__name__
    torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize("why", ["hook", "trained weight", "trained bias", "subclass", "patched forward"])
def test_a_base_layer_that_must_be_called_is_called(why, make_mlp, adapt, x, mora_layers):
    layer = mora_layers(adapt(make_mlp()))["0"]
    expected, calls = layer(x), []
    if why == "hook":
        layer.base_layer.register_forward_pre_hook(lambda *_: calls.append(1))
    elif why == "trained weight":
        layer.base_layer.weight.requires_grad_(True)
    elif why == "trained bias":
        layer.base_layer.bias.requires_grad_(True)
    elif why == "subclass":
        layer.base_layer.__class__ = type("Counted", (nn.Linear,), {})
    original = layer.base_layer.forward
    if why in ("subclass", "patched forward"):
        layer.base_layer.forward = lambda x: calls.append(1) or original(x)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    if why.startswith("trained"):
        assert getattr(layer.base_layer, why.removeprefix("trained ")).grad.count_nonzero() > 0
    else:
        assert calls


@pytest.mark.parametrize("form", ["auto", "products", "torch"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.ones(3, 20).double(), "same dtype"),
        (torch.ones(3, 20).long(), "same dtype"),
        (torch.ones(2, 30), "multiplied"),
    ],
    ids=["fp64", "int64", "width"],
)
def test_an_input_that_the_base_refuses_is_refused(wrong, message, form, make_mlp, adapt, mora_layers):
    layer = mora_layers(adapt(make_mlp()))["0"]
    with pytest.raises(RuntimeError, match=message):
        layer.base_layer(wrong)
    with kernels.use(form), pytest.raises(RuntimeError, match=message):
        layer(wrong)


@pytest.mark.parametrize("form", ["products", "torch", "triton"])
def test_an_update_beside_a_large_bias_is_not_rounded_away(form, mora_layers, adapt):
    """In bf16 the neighbours of 354 are 2 apart. What is added to W x + b after its rounding gets lost, and merging brings
    it back: a layer must compute what it computes when merged."""
    if form == "triton" and not kernels._has_triton():
        pytest.skip("needs Triton")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].bias.data.fill_(354.0)
    layer = mora_layers(adapt(model, r=4, operator="sharing", target_modules=["0"]).bfloat16())["0"]
    layer.mora_M["default"].weight.data.normal_(0, 0.03)
    x = torch.randn(500, 64, dtype=torch.bfloat16)
    base = layer.base_layer(x)
    with torch.no_grad(), kernels.use(form):
        y = torch.cat([layer(rows) for rows in (x[:250], *x[250:].split(10))])  # of few rows, too
    W = layer.base_layer.weight.double() + layer.get_delta_weight("default").double()
    merged = (x.double() @ W.mT + layer.base_layer.bias.double()).bfloat16()
    assert (base != merged).double().mean() > 0.02  # what the update changes
    assert (y != merged).double().mean() < 0.002


def test_pefts_lora_rounds_the_same_update_away():
    """As docs/peft.md says; where this fails, that page is out of date."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].bias.data.fill_(354.0)
    config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    layer = get_peft_model(model, config).bfloat16().eval().base_model.model[0]
    layer.lora_B["default"].weight.data.mul_(0.2)
    x = torch.randn(500, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        base, unmerged = layer.base_layer(x), layer(x)
        layer.merge()
        merged = layer(x)
    assert (base != merged).double().mean() > 0.02
    assert torch.equal(unmerged, base)


def test_a_module_used_twice_adds_both_gradients(make_mlp, adapt, mora_layers):
    layer = mora_layers(adapt(make_mlp(), target_modules=["2"]))["2"]
    layer.double()
    x = torch.randn(3, 32, dtype=torch.float64)
    gradients = []
    for form in ("auto", "products", "reference"):
        with kernels.use(form):
            gradients.append(torch.autograd.grad(layer(layer(x)).square().sum(), layer.mora_M["default"].weight)[0])
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[2])


@pytest.mark.parametrize("fast", ["auto", "products"])
@pytest.mark.parametrize("mode", ["fp32 base", "bf16 base"])
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_autocast_gives_the_dtypes_and_values_of_the_reference(operator, mode, fast, make_mlp, adapt, mora_layers, x):
    model = adapt(make_mlp(torch.float32 if mode == "fp32 base" else torch.bfloat16), operator=operator)
    results = []
    for form in (fast, "reference"):
        with kernels.use(form):
            with torch.autocast("cpu", torch.bfloat16):
                y = model(x)
            model.zero_grad()
            y.float().square().sum().backward()
        results.append((y, mora_layers(model)["0"].mora_M["default"].weight.grad))
    with torch.autocast("cpu", torch.bfloat16):
        assert mora_layers(model)["0"](x.to(next(model.parameters()).dtype)).grad_fn.dtype == torch.bfloat16
    (y, grad), (expected, expected_grad) = results
    assert (y.dtype, grad.dtype) == (expected.dtype, torch.float32)
    assert relative_error(y, expected.double()) < 1e-2
    assert relative_error(grad, expected_grad.double()) < 2e-2


@pytest.mark.parametrize("form", ["auto", "products"])
def test_constants_are_not_made_again_in_a_compiled_graph(form, make_mlp, adapt, x):
    model = adapt(make_mlp(), operator="rotation")
    called = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        inner = [g for g in graph.modules() if isinstance(g, torch.fx.GraphModule)]  # an autograd function's, too
        called.extend(node.target for g in inner for node in g.graph.nodes if node.op == "call_function")
        return graph

    torch.compiler.reset()
    with kernels.use(form):
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, backend=backend, fullgraph=True)(x), expected)
    assert called
    assert not {torch.eye, torch.arange, torch.outer} & set(called)
