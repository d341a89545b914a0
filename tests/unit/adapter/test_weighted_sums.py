"""`add_weighted_adapter`: the sum on every layer of every adapter, saved and loaded as well, or a refusal by name."""

from __future__ import annotations

import pytest
import torch
from model_checks import assert_close, trainable
from peft import PeftModel, get_peft_model
from torch import nn

from mora import MoraConfig
from mora.adapter import MoraLinear

WEIGHTS = {"a": 0.5, "b": -2.0}
O_PROJ = {"target_modules": ["o_proj"]}


def adapter(**options) -> MoraConfig:
    return MoraConfig(**{"r": 4, "operator": "sharing", "target_modules": ["q_proj"], "init_weights": False} | options)


def deltas(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, MoraLinear)]
    return {n: m.fp32_delta_weight(name) for n, m in modules if name in m.mora_M}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param({}, {"r": 8, "target_modules": ["o_proj"]}, id="r"),
        pytest.param({"rank_pattern": {r"layers\.1.*": 1}}, {"target_modules": ["o_proj"]}, id="rank_pattern of a"),
        pytest.param({}, {"rank_pattern": {r"0.*o_proj": 2}, "target_modules": ["o_proj"]}, id="rank_pattern of b"),
        pytest.param({}, {"target_modules": r".*\.o_proj"}, id="list and expression"),
        pytest.param({"target_modules": r".*\.o_proj"}, {}, id="expression and list"),
        pytest.param({"target_modules": "all-linear", "exclude_modules": ["o_proj"]}, O_PROJ, id="exclude"),
        pytest.param({"layers_to_transform": 0, "layers_pattern": "layers"}, {"layers_to_transform": [1]}, id="layers"),
        pytest.param({"operator": "rotation"}, {"operator": "rotation", "target_modules": ["down_proj"]}, id="rotation"),
        pytest.param({"rhat_rounding": "official"}, O_PROJ | {"r": 1000}, id="rounding that does not matter"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:MoRA r=1000 asks for:UserWarning")
def test_the_sum_is_on_every_layer_of_every_adapter(a, b, make_llama, tmp_path):
    model = get_peft_model(make_llama(), adapter(**a), adapter_name="a")
    model.add_adapter("b", adapter(**b))
    model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "sum")
    parts = {name: deltas(model, name) for name in WEIGHTS}
    expected = {
        layer: sum(WEIGHTS[name] * parts[name][layer] for name in WEIGHTS if layer in parts[name])
        for layer in parts["a"] | parts["b"]
    }
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path / "sum", adapter_name="sum")
    for found in (deltas(model, "sum"), deltas(loaded, "sum")):
        assert found.keys() == expected.keys()
        for layer, delta in expected.items():
            assert_close(found[layer], delta, tolerance=1e-6)
    assert {name.split(".")[-2] for name in trainable(model)} == {"a"}


def test_the_sum_of_adapters_whose_groups_were_changed_has_these_groups(make_llama, mora_layers, tmp_path):
    model = get_peft_model(make_llama(), adapter(), adapter_name="a")
    for layer in mora_layers(model).values():
        layer.set_groups("a", "contiguous")
    model.add_weighted_adapter(["a"], [2.0], "sum")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = deltas(PeftModel.from_pretrained(make_llama(), tmp_path / "sum", adapter_name="sum"), "sum")
    for layer, delta in deltas(model, "a").items():
        assert_close(loaded[layer], 2 * delta, tolerance=1e-6)


def test_the_sum_is_not_on_a_module_whose_name_ends_alike():
    names = ["lin", "inner.lin", "deep.x.lin"]
    base = nn.ModuleDict({"lin": nn.Linear(8, 8), "inner": nn.ModuleDict({"lin": nn.Linear(8, 8)})})
    base["deep"] = nn.ModuleDict({"x": nn.ModuleDict({"lin": nn.Linear(8, 8)})})
    model = get_peft_model(base, MoraConfig(r=1, target_modules="lin", operator="sharing"), adapter_name="a")
    model.add_adapter("b", MoraConfig(r=2, target_modules=r"inner\.lin", operator="sharing"))
    model.add_weighted_adapter(["a", "b"], [0.5, 2.0], "sum")
    layers = [model.base_model.model.get_submodule(name) for name in names]
    assert [layer.r.get("sum") if isinstance(layer, MoraLinear) else None for layer in layers] == [1, 2, None]


def test_the_sum_is_taken_in_fp32_and_has_the_adapters_dtype(make_llama, mora_layers):
    for dtype in (torch.float32, torch.bfloat16):
        model = get_peft_model(make_llama().bfloat16(), adapter(), adapter_name="a")
        model.add_adapter("b", adapter())
        for layer in mora_layers(model).values():
            layer.mora_M.to(dtype)
        model.add_weighted_adapter(["a", "b"], [0.3, 0.7], "sum")
        for layer in mora_layers(model).values():
            exact = 0.3 * layer.matrix("a").float() + 0.7 * layer.matrix("b").float()
            assert torch.equal(layer.matrix("sum"), exact.to(dtype))


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ({}, O_PROJ | {"operator": "decouple"},
         r"operator is 'sharing' of adapter 'a' on model\.layers\.0\.self_attn\.q_proj, "
         r"'decouple' of 'b' on model\.layers\.0\.self_attn\.o_proj: merge one after the other"),
        ({}, O_PROJ | {"groups": "contiguous"}, "groups is 'modulo' of adapter 'a' on .*'contiguous' of 'b' on "),
        ({"operator": "rotation"}, O_PROJ | {"operator": "rotation", "overflow": "drop"},
         "overflow is 'fold' of .*'drop' of 'b' on"),
        ({}, {"r": 8}, r"r_hat is 22 of adapter 'a' on model\.layers\.0\.self_attn\.q_proj, 32 of 'b' on "),
        ({}, O_PROJ | {"r": 3, "rhat_rounding": "official"},
         "differ in rhat_rounding, with which one r gives r_hat=20 and r_hat=19"),
        ({}, O_PROJ | {"modules_to_save": ["lm_head"]}, r"adapter 'b' has modules_to_save=\['lm_head'\]: only M has a"),
        ({"modules_to_save": ["lm_head"]}, O_PROJ, r"adapter 'a' has modules_to_save=\['lm_head'\]"),
        ({}, O_PROJ | {"trainable_token_indices": [3]}, r"adapter 'b' has trainable_token_indices=\[3\]"),
        ({}, O_PROJ | {"bias": "all"}, "adapter 'b' has bias='all'"),
    ],
    ids=["operator", "groups", "overflow", "r", "rounding", "saved-b", "saved-a", "tokens", "bias"],
)  # fmt: skip
def test_adapters_that_have_no_sum_are_refused_by_name(a, b, why, make_llama):
    model = get_peft_model(make_llama(), adapter(**a), adapter_name="a")
    model.add_adapter("b", adapter(**b))
    with pytest.raises(ValueError, match=f"^add_weighted_adapter: .*{why}"):
        model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")
    assert list(model.peft_config) == ["a", "b"]


def test_adapters_that_are_not_in_memory_are_refused(make_llama, mora_layers):
    model = get_peft_model(make_llama(), adapter(), adapter_name="a")
    mora_layers(model)["model.layers.1.self_attn.q_proj"].mora_M.to("meta")
    with pytest.raises(ValueError, match=r"M of adapter 'a' on model\.layers\.1\.self_attn\.q_proj is not in memory"):
        model.add_weighted_adapter(["a"], [1.0], "sum")


def test_nothing_is_left_of_a_sum_that_fails_half_way(make_llama, mora_layers, monkeypatch, tokens):
    model = get_peft_model(make_llama(), adapter(), adapter_name="a")
    model.add_adapter("b", adapter())
    before, trained, update_layer = model(tokens).logits, trainable(model), MoraLinear.update_layer

    def fail_in_the_second_layer(layer, *args, **kwargs):
        if layer is mora_layers(model)["model.layers.1.self_attn.q_proj"]:
            raise MemoryError
        update_layer(layer, *args, **kwargs)

    monkeypatch.setattr(MoraLinear, "update_layer", fail_in_the_second_layer)
    with pytest.raises(MemoryError):
        model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")
    monkeypatch.undo()
    assert (list(model.peft_config), model.active_adapters, trainable(model)) == (["a", "b"], ["a"], trained)
    assert not deltas(model, "sum")
    assert torch.equal(model(tokens).logits, before)
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")
    assert len(deltas(model, "sum")) == 2
