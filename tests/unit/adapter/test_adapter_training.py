"""How an adapter starts and trains: at zero, in which dtypes, with dropout, checkpointing and biases."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from model_checks import assert_close, trainable
from peft import get_peft_model
from torch import nn

from mora import MoraConfig
from mora.adapter import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_new_adapter_is_zero_and_leaves_the_output_bit_identical(operator, make_llama, tokens, mora_layers):
    expected = make_llama()(tokens).logits
    model = get_peft_model(make_llama(), MoraConfig(r=2, target_modules="all-linear", operator=operator))
    assert all(layer.mora_M["default"].weight.count_nonzero() == 0 for layer in mora_layers(model).values())
    assert torch.equal(model(tokens).logits, expected)


def test_a_zero_adapter_gets_a_gradient_at_once(make_llama, tokens, mora_layers):
    model = get_peft_model(make_llama(), MoraConfig(r=2, target_modules="all-linear"))
    model(tokens, labels=tokens).loss.backward()
    assert all(layer.mora_M["default"].weight.grad.count_nonzero() > 0 for layer in mora_layers(model).values())


def test_dropout_acts_in_training_on_the_adapter_only(make_mlp, adapt, x):
    model = adapt(make_mlp(), mora_dropout=0.5)
    plain = adapt(make_mlp())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    with model.disable_adapter():
        assert torch.equal(model(x), make_mlp()(x))


def test_a_bfloat16_base_gets_float32_adapters_and_answers_in_bfloat16(make_mlp, adapt, mora_layers, x):
    model = adapt(make_mlp(torch.bfloat16))
    assert {layer.mora_M["default"].weight.dtype for layer in mora_layers(model).values()} == {torch.float32}
    y = model(x.bfloat16())
    assert y.dtype == torch.bfloat16
    reference = adapt(make_mlp())
    reference.load_state_dict(model.state_dict())
    assert_close(y.float(), reference(x), tolerance=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_adapters_take_the_dtype_of_the_base_where_peft_is_told_not_to_choose(dtype, make_mlp, mora_layers, x):
    config = MoraConfig(r=2, target_modules=["0"])
    model = get_peft_model(make_mlp(dtype), config, autocast_adapter_dtype=False)
    assert mora_layers(model)["0"].mora_M["default"].weight.dtype == dtype
    assert model(x.to(dtype)).dtype == dtype


def test_autocast_computes_in_bfloat16_and_trains_float32_adapters(make_mlp, adapt, mora_layers, x):
    model = adapt(make_mlp())
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), model(x), tolerance=0.05)
    y.sum().backward()
    for layer in mora_layers(model).values():
        assert layer.mora_M["default"].weight.grad.dtype == torch.float32
        assert layer.mora_M["default"].weight.grad.count_nonzero() > 0


def test_gradient_checkpointing_gives_the_same_gradients(make_llama, adapt, tokens, mora_layers):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = adapt(make_llama(), target_modules="all-linear", operator="rotation").train()
        if checkpointing:
            # transformers renamed it; "gradient" is what older ones know
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        model(tokens, labels=tokens).loss.backward()
        return [layer.mora_M["default"].weight.grad for layer in mora_layers(model).values()]

    assert_close(gradients(checkpointing=True), gradients(checkpointing=False), tolerance=1e-6)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_compiled_layer_equals_the_eager_one_without_a_graph_break(operator, make_mlp, adapt, mora_layers, x):
    layer = mora_layers(adapt(make_mlp(), operator=operator))["0"]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)

    def output_and_gradient(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        y = module(x)
        return y, torch.autograd.grad(y.square().sum(), layer.mora_M["default"].weight)[0]

    assert_close(output_and_gradient(compiled), output_and_gradient(layer))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_model_can_be_duplicated_and_the_duplicate_is_independent(duplicate, make_mlp, adapt, mora_layers, x):
    model = adapt(make_mlp(), operator="rotation")
    expected = model(x)
    twin = duplicate(model)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        mora_layers(twin)["0"].mora_M["default"].weight.zero_()
    assert not torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("bias", "biases"), [("mora_only", {"0.base_layer.bias"}), ("all", {"0.base_layer.bias", "2.bias", "4.bias"})]
)
def test_bias_chooses_which_biases_train(bias, biases, make_mlp, adapt):
    model = adapt(make_mlp(), target_modules=["0"], bias=bias)
    assert trainable(model) == {"0.mora_M.default.weight"} | biases
