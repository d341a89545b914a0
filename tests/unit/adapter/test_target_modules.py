"""Where MoRA goes: the modules that a config names, of which size, and what is refused."""

from __future__ import annotations

import pytest
import torch
from model_checks import assert_close, trainable
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
    with pytest.raises(TypeError, match=rf"^inner\.0: MoRA .*{name}"):
        get_peft_model(nn.ModuleDict({"inner": nn.Sequential(module)}), MoraConfig(r=1, target_modules=["0"]))


def test_a_layer_too_small_for_the_operator_is_named():
    base = nn.ModuleDict({"inner": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))})
    with pytest.raises(ValueError, match=r"^inner\.1: operator='rotation' needs at least two inputs and two outputs"):
        get_peft_model(base, MoraConfig(r=2, operator="rotation", target_modules=["0", "1"]))


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
