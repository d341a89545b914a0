"""MoRA behaves as any PEFT method does: where it goes, how it trains, switches, scales and merges."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from mora import MoraConfig
from mora.adapter import OPERATORS

ATTENTION = {f"model.layers.{i}.self_attn.{p}" for i in (0, 1) for p in ("q_proj", "k_proj", "v_proj", "o_proj")}
FFN = {f"model.layers.{i}.mlp.{p}" for i in (0, 1) for p in ("gate_proj", "up_proj", "down_proj")}


def ending(*suffixes: str) -> set[str]:
    return {name for name in ATTENTION | FFN if name.endswith(suffixes)}


def assert_close(actual, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def trainable(model: nn.Module) -> set[str]:
    return {n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad}


# --- where it goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"target_modules": "all-linear"}, ATTENTION | FFN, id="all-linear"),
        pytest.param({"target_modules": ["q_proj", "down_proj"]}, ending("q_proj", "down_proj"), id="list"),
        pytest.param(
            {"target_modules": r".*layers\.1\..*_proj"}, {n for n in ATTENTION | FFN if ".1." in n}, id="regex"
        ),
        pytest.param({"target_modules": None}, ending("q_proj", "v_proj"), id="default"),
        pytest.param(
            {"target_modules": "all-linear", "exclude_modules": ["k_proj", "v_proj"]},
            ending("q_proj", "o_proj") | FFN,
            id="exclude-list",
        ),
        pytest.param({"target_modules": "all-linear", "exclude_modules": r".*self_attn.*"}, FFN, id="exclude-regex"),
        pytest.param(
            {"target_modules": ["q_proj"], "layers_to_transform": 1}, ending("1.self_attn.q_proj"), id="layer"
        ),
        pytest.param(
            {"target_modules": ["o_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
            ending("0.self_attn.o_proj"),
            id="layers-pattern",
        ),
    ],
)
def test_the_chosen_modules_are_adapted_and_no_others(options, expected, make_llama, mora_layers):
    model = get_peft_model(make_llama(), MoraConfig(r=2, **options))
    assert set(mora_layers(model)) == expected
    assert trainable(model) == {f"{name}.mora_M.default.weight" for name in expected}


def test_rank_pattern_gives_named_modules_their_own_r(make_llama, mora_layers):
    config = MoraConfig(
        r=2,
        target_modules=["q_proj", "k_proj"],
        operator="sharing",
        rank_pattern={r"layers\.1.*q_proj": 8, "k_proj": 1},
    )
    layers = mora_layers(get_peft_model(make_llama(), config))
    assert {name: (layer.r["default"], len(layer.mora_M["default"].weight)) for name, layer in layers.items()} == {
        "model.layers.0.self_attn.q_proj": (2, 16),  # sqrt(128 * 2)
        "model.layers.1.self_attn.q_proj": (8, 32),  # sqrt(128 * 8)
        "model.layers.0.self_attn.k_proj": (1, 9),  # sqrt(96 * 1)
        "model.layers.1.self_attn.k_proj": (1, 9),
    }


@pytest.mark.parametrize(
    ("options", "r_hat"),  # sqrt((20 + 32) * 6) = 17.7
    [
        ({"operator": "sharing", "groups": "contiguous-modulo", "split": "padded", "pad": "zeros"}, 17),
        ({"operator": "sharing", "rhat_rounding": "official"}, 18),
        ({"operator": "decouple", "overflow": "fold", "pad": "zeros"}, 17),
        ({"operator": "rotation", "pairs": "interleaved"}, 16),
        ({"operator": "rotation", "rhat_rounding": "official"}, 18),
    ],
)
def test_every_option_of_the_config_reaches_the_operator(options, r_hat, make_mlp, adapt, mora_layers):
    operator = mora_layers(adapt(make_mlp(), r=6, target_modules=["0"], **options))["0"].operator["default"]
    fields = {"overflow": "fold"} | {
        name: value for name, value in options.items() if name not in ("operator", "rhat_rounding")
    }
    assert operator == OPERATORS[options["operator"]](20, 32, r_hat, **fields)


def test_at_the_same_r_mora_trains_no_more_parameters_than_lora(make_llama):
    mora = get_peft_model(make_llama(), MoraConfig(r=3, target_modules="all-linear"))
    lora = get_peft_model(make_llama(), LoraConfig(r=3, target_modules="all-linear"))
    (mora_count, _), (lora_count, _) = mora.get_nb_trainable_parameters(), lora.get_nb_trainable_parameters()
    assert 0.9 * lora_count < mora_count <= lora_count


def test_a_model_without_any_target_is_refused(make_mlp):
    with pytest.raises(ValueError, match="not found in the base model"):
        get_peft_model(make_mlp(), MoraConfig(target_modules=["q_proj"]))


def int8_linear() -> nn.Linear:
    class Int8Linear(nn.Linear):
        pass

    layer = Int8Linear(8, 8, bias=False)
    layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    return layer


def float8_linear() -> nn.Linear:
    return nn.Linear(8, 8, bias=False).requires_grad_(False).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Embedding(8, 8), "torch.nn.modules.sparse.Embedding"),
        (nn.Conv2d(8, 8, 1), "torch.nn.modules.conv.Conv2d"),
        (nn.LayerNorm(8), "torch.nn.modules.normalization.LayerNorm"),
        (int8_linear(), "quantised modules, got .*Int8Linear"),
        (float8_linear(), "quantised modules, got .*Linear"),
    ],
    ids=["Embedding", "Conv2d", "LayerNorm", "int8", "float8"],
)
def test_a_module_that_is_no_floating_point_linear_is_refused_by_name(module, name):
    with pytest.raises(TypeError, match=name):
        get_peft_model(nn.Sequential(module), MoraConfig(r=1, target_modules=["0"]))


def test_mora_on_top_of_lora_is_refused(make_mlp):
    lora = get_peft_model(make_mlp(), LoraConfig(target_modules=["0"]))
    with pytest.raises(TypeError, match="0 already carries a Linear: MoRA cannot be put on top of it"):
        get_peft_model(lora.base_model.model, MoraConfig(r=2, target_modules=["0"]))


def test_conv1d_of_gpt2_is_adapted_and_merged_in_its_own_layout(tokens, adapt, mora_layers):
    base = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_positions=16, n_embd=32, n_layer=1, n_head=2)).eval()
    before = base(tokens).logits
    model = adapt(base, target_modules=["c_attn", "c_fc", "c_proj"], operator="rotation")
    layers = mora_layers(model).values()
    assert {type(layer.get_base_layer()) for layer in layers} == {Conv1D}
    assert all(layer.get_delta_weight("default").shape == layer.get_base_layer().weight.shape for layer in layers)
    adapted = model(tokens).logits
    assert (adapted - before).abs().max() > 0.01
    assert_close(model.merge_and_unload()(tokens).logits, adapted)


# --- how it starts and trains ----------------------------------------------------------------------------------------


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


# --- several adapters ------------------------------------------------------------------------------------------------


@pytest.fixture
def two(make_mlp, adapt):
    """An MLP with the adapters "default" (active) and "second", of different operators and sizes."""
    model = adapt(make_mlp())
    second = MoraConfig(
        r=3,
        rank_pattern={"4": 1},
        target_modules=["2", "4"],
        operator="rotation",
        overflow="fold",
        init_weights=False,
    )
    model.add_adapter("second", second)
    return model


def test_adding_an_adapter_changes_neither_the_output_nor_what_trains(two, make_mlp, x):
    assert trainable(two) == {"0.mora_M.default.weight", "2.mora_M.default.weight"}
    expected = two(x)
    two.delete_adapter("second")
    assert torch.equal(two(x), expected)


def test_an_adapter_added_to_a_layer_by_hand_does_not_train_until_it_is_active(two, mora_layers):
    layer = mora_layers(two)["0"]
    layer.update_layer("third", 2, two.peft_config["default"])
    assert not layer.mora_M["third"].weight.requires_grad
    layer.set_adapter("third")
    assert layer.mora_M["third"].weight.requires_grad


def test_set_adapter_switches_output_and_what_trains(two, x):
    first = two(x)
    two.set_adapter("second")
    assert trainable(two) == {"2.mora_M.second.weight", "4.mora_M.second.weight"}
    assert not torch.allclose(two(x), first)
    two.set_adapter("default")
    assert torch.equal(two(x), first)


def test_two_active_adapters_add_up_in_each_layer(two, mora_layers):
    two.base_model.set_adapter(["default", "second"])
    layer = mora_layers(two)["2"]
    h = torch.randn(3, 32)
    delta = layer.get_delta_weight("default") + layer.get_delta_weight("second")
    assert_close(layer(h), layer.base_layer(h) + h @ delta.T)
    assert trainable(two) == {
        "0.mora_M.default.weight",
        "2.mora_M.default.weight",
        "2.mora_M.second.weight",
        "4.mora_M.second.weight",
    }


def test_disable_adapter_gives_the_base_output_inside_the_context_only(two, make_mlp, x):
    adapted = two(x)
    with two.disable_adapter():
        assert torch.equal(two(x), make_mlp()(x))
    assert torch.equal(two(x), adapted)


def test_disable_adapter_layers_gives_the_base_output_until_they_are_enabled(two, make_mlp, x):
    adapted = two(x)
    two.disable_adapter_layers()
    assert torch.equal(two(x), make_mlp()(x))
    two.enable_adapter_layers()
    assert torch.equal(two(x), adapted)


def test_disabling_a_merged_adapter_unmerges_it(two, make_mlp, mora_layers, x):
    adapted = two(x)
    two.merge_adapter()
    with two.disable_adapter():
        assert_close(two(x), make_mlp()(x))
    assert not any(layer.merged for layer in mora_layers(two).values())
    assert_close(two(x), adapted)


def test_a_deleted_adapter_leaves_nothing_behind(two, mora_layers, x):
    two.set_adapter("second")
    expected = two(x)
    two.delete_adapter("default")
    assert torch.equal(two(x), expected)
    assert list(two.peft_config) == ["second"]
    for layer in mora_layers(two).values():
        for attribute in (layer.mora_M, layer.operator, layer.r, layer.scaling, layer.mora_dropout):
            assert "default" not in attribute


def test_the_delta_weight_of_an_unknown_adapter_is_refused_with_the_known_names(two, mora_layers):
    with pytest.raises(ValueError, match=r"no adapter 'third' on this layer; there are \['default', 'second'\]"):
        mora_layers(two)["2"].get_delta_weight("third")


def test_set_groups_gives_M_the_meaning_of_the_other_kind_of_groups(make_mlp, adapt, mora_layers, x):
    layer, other = (mora_layers(adapt(make_mlp(), groups=g))["0"] for g in ("modulo", "contiguous"))
    other.mora_M["default"].weight = layer.mora_M["default"].weight
    assert not torch.allclose(layer(x), other(x))
    layer.set_groups("default", "contiguous")
    assert torch.equal(layer(x), other(x))
    assert torch.equal(layer.get_delta_weight("default"), other.get_delta_weight("default"))


@pytest.mark.parametrize("groups", ["d", "bogus", None, ["modulo"]])
def test_set_groups_refuses_what_is_no_kind(groups, make_mlp, adapt, mora_layers):
    layer = mora_layers(adapt(make_mlp()))["0"]
    with pytest.raises(ValueError, match=r"^groups=.*: expected one of modulo, contiguous, "):
        layer.set_groups("default", groups)
    assert layer.operator["default"].groups == "modulo"


# --- scaling ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def layer(make_mlp, adapt, mora_layers):
    """One MoRA layer 20 -> 32 with a random M."""
    return mora_layers(adapt(make_mlp()))["0"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda layer: layer.set_scale("default", 0.25), 0.25),
        (lambda layer: (layer.set_scale("default", 0.5), layer.scale_layer(3.0)), 1.5),
        (lambda layer: (layer.set_scale("default", 6.0), layer.unscale_layer(3.0)), 2.0),
        (lambda layer: (layer.scale_layer(3.0), layer.unscale_layer()), 1.0),
        (lambda layer: layer.set_scale("not here", 5.0), 1.0),
    ],
    ids=["set_scale", "scale_layer", "unscale_layer_by", "unscale_layer", "set_scale_of_another"],
)
def test_the_scale_is_honoured_in_forward_and_merge(change, expected, layer, x):
    base, delta = layer.base_layer(x), layer.get_delta_weight("default")
    change(layer)
    wanted = base + expected * (x @ delta.T)
    assert_close(layer(x), wanted)
    layer.merge()
    assert_close(layer.base_layer(x), wanted)


def test_scale_layer_scales_the_active_adapter_only(two, mora_layers):
    layer = mora_layers(two)["2"]
    layer.scale_layer(4.0)
    assert layer.scaling == {"default": 4.0, "second": 1.0}
    layer.unscale_layer()
    assert layer.scaling == {"default": 1.0, "second": 1.0}


# --- merging ---------------------------------------------------------------------------------------------------------


def test_merge_adapter_and_unmerge_adapter_keep_the_output_and_restore_the_weights(two, make_mlp, x, mora_layers):
    adapted = two(x)
    two.merge_adapter()
    weight = mora_layers(two)["0"].base_layer.weight
    assert (weight - make_mlp()[0].weight).abs().max() > 0.01
    assert_close(two(x), adapted)
    two.unmerge_adapter()
    assert_close(weight, make_mlp()[0].weight, tolerance=1e-6)
    assert_close(two(x), adapted)


def test_merging_twice_warns_and_adds_once(layer):
    layer.merge()
    once = layer.base_layer.weight.clone()
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, once)
    assert layer.merged_adapters == ["default"]


def test_unmerging_what_is_not_merged_warns_and_changes_nothing(layer):
    before = layer.base_layer.weight.clone()
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()
    assert torch.equal(layer.base_layer.weight, before)


def test_a_named_adapter_is_merged_while_another_is_active(two, x):
    two.set_adapter("second")
    expected = two(x)
    two.set_adapter("default")
    assert_close(two.merge_and_unload(adapter_names=["second"])(x), expected)


def test_merge_and_unload_leaves_a_plain_model_with_the_same_output(two, x, mora_layers):
    two.base_model.set_adapter(["default", "second"])
    expected = two(x)
    plain = two.merge_and_unload(safe_merge=True)
    assert [type(m) for m in plain] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert_close(plain(x), expected)


def test_unload_gives_the_base_model_back(two, make_mlp, x):
    assert torch.equal(two.unload()(x), make_mlp()(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_safe_merge_of_values_that_are_not_finite_raises_and_touches_nothing(value, layer):
    before = layer.base_layer.weight.clone()
    with torch.no_grad():
        layer.mora_M["default"].weight[0, 0] = value
    with pytest.raises(
        ValueError, match=r"(NaNs|Infinite numbers) detected in the merged weights\. The adapter default"
    ):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged


def test_a_safe_merge_sees_a_sum_that_overflows_the_dtype_of_the_base(make_mlp, adapt, mora_layers):
    layer = mora_layers(adapt(make_mlp(torch.float16)))["0"]
    with torch.no_grad():
        layer.base_layer.weight.fill_(60_000)
        layer.mora_M["default"].weight.fill_(60_000)
    with pytest.raises(ValueError, match=r"or torch\.float16 cannot hold the sum"):
        layer.merge(safe_merge=True)
    assert layer.base_layer.weight.isfinite().all()


def test_a_bfloat16_base_is_merged_in_float32_and_rounded_once(make_mlp, adapt, mora_layers):
    layer = mora_layers(adapt(make_mlp(torch.bfloat16)))["2"]
    delta = layer.operator["default"].delta_weight(layer.mora_M["default"].weight.detach())
    expected = (layer.base_layer.weight.float() + delta).bfloat16()
    rounded_twice = (layer.base_layer.weight.float() + delta.bfloat16().float()).bfloat16()
    assert not torch.equal(expected, rounded_twice)
    layer.merge()
    assert torch.equal(layer.base_layer.weight, expected)
