"""Which layers a restart works on, whose configuration it changes, and bases that something else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import parametrize, prune
from trainer_runs import arguments, assert_as_the_suite, of_the_suite, run_config, trainer_for
from transformers import TrainerCallback

from mora import MoraConfig
from mora.methods import prepare
from mora.models.load import load_model
from mora.restarts.layers import adapted_layers, set_groups
from mora.restarts.restart import RestartFailed
from mora.restarts.supported import check_supported


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 24))


def test_groups_change_in_one_adapter_of_several_that_were_made_from_one_configuration(tmp_path):
    config = MoraConfig(r=2, target_modules=["0"], operator="sharing", init_weights=False)
    model = get_peft_model(base(), config)
    model.add_adapter("second", model.peft_config["default"])
    expected = model.base_model.model[0].get_delta_weight("second").clone()
    set_groups(model, "contiguous")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path / "second")
    assert torch.equal(loaded.base_model.model[0].get_delta_weight("default"), expected)
    assert model.peft_config["default"].groups == "contiguous"
    assert config.groups == "modulo"


@pytest.mark.parametrize(("method", "kind"), [("relora", LoraConfig), ("remora", MoraConfig)])
def test_an_inactive_adapter_on_other_layers_changes_nothing(method, kind, tmp_path):
    config = run_config(method)
    torch.manual_seed(0)
    model = prepare(load_model(config.model, "fp32")[0], config)
    model.add_adapter("second", kind(r=2, target_modules=["lm_head"]))
    expected = {n: p.clone() for n, p in model.named_parameters() if ".second." in n}
    trainer, restart, watch = trainer_for(method, tmp_path, model=model)
    trainer.train()
    assert_as_the_suite(watch.steps, of_the_suite(method))
    assert [facts["restart"] for facts in restart.history] == [1, 2, 3]
    assert expected
    assert all(torch.equal(model.get_parameter(n), value) for n, value in expected.items())


# --- bases that something else changes -------------------------------------------------------------------------------


def refused(model, why, tmp_path):
    with pytest.raises(ValueError, match=rf"^RestartCallback: {why}"):
        check_supported(arguments(tmp_path, run_config("remora")), model)


@pytest.mark.parametrize("kind", [LoraConfig, MoraConfig])
def test_a_second_adapter_on_a_restarted_layer_is_refused(kind, tmp_path):
    model = get_peft_model(base(), kind(r=2, target_modules=["0"]))
    model.add_adapter("ref", model.peft_config["default"])
    refused(model, r".*\.0 has the adapter 'ref' as well, .*delete_adapter\('ref'\)", tmp_path)
    model.delete_adapter("ref")
    assert len(check_supported(arguments(tmp_path, run_config("remora")), model)) == 1


@pytest.mark.parametrize("kind", [LoraConfig, MoraConfig])
def test_a_base_weight_that_trains_is_refused(kind, tmp_path):
    model = get_peft_model(base(), kind(r=2, target_modules=["0"]))
    model.base_model.model[0].get_base_layer().weight.requires_grad_(True)
    refused(model, r"the base weight of .*\.0 trains \(requires_grad=True\).*requires_grad_\(False\)", tmp_path)


@pytest.mark.parametrize("kind", [LoraConfig, MoraConfig])
def test_a_base_weight_that_is_computed_before_each_pass_is_refused(kind, tmp_path):
    model = get_peft_model(base(), kind(r=2, target_modules=["0"]))
    layer = model.base_model.model[0].get_base_layer()
    prune.l1_unstructured(layer, "weight", 0.5)
    refused(model, r"the base weight of .*\.0 is computed from others .*prune\.remove", tmp_path)
    prune.remove(layer, "weight")
    layer.weight.requires_grad_(False)
    assert len(check_supported(arguments(tmp_path, run_config("remora")), model)) == 1


def test_a_parametrised_base_weight_is_refused(tmp_path):
    model = get_peft_model(base(), MoraConfig(r=2, target_modules=["0"]))
    parametrize.register_parametrization(model.base_model.model[0].get_base_layer(), "weight", nn.Identity())
    refused(model, r".*\.0 is a ParametrizedLinear", tmp_path)


def test_single_tokens_that_train_are_refused(tmp_path):
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8))
    config = MoraConfig(r=1, target_modules=["1"], trainable_token_indices={"0": [1]})
    refused(get_peft_model(model, config), "trainable_token_indices", tmp_path)


class Halves(TrainerCallback):
    """Changes one base weight after the sixth step, between two restarts."""

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == 6:
            adapted_layers(model)[0].base.data.mul_(0.5)


@pytest.mark.parametrize("method", ["relora", "remora"])
def test_a_base_that_was_changed_between_two_restarts_ends_the_training(method, tmp_path):
    trainer, restart, _ = trainer_for(method, tmp_path)
    trainer.add_callback(Halves())
    with pytest.raises(
        RestartFailed, match=r"^restart 2: the base weight of .*\.layers\.0\..* is not what the last re"
    ):
        trainer.train()
    assert [facts["restart"] for facts in restart.history] == [1]


def test_a_base_that_was_changed_between_two_trainings_is_refused_before_the_second(tmp_path):
    first, _, _ = trainer_for("remora", tmp_path / "first", stop=6)
    first.train()
    adapted_layers(first.model)[-1].base.data.mul_(0.5)
    again, _, watch = trainer_for("remora", tmp_path / "again", model=first.model)
    with pytest.raises(RestartFailed, match=r"^restart 1: the base weight of .* is not what the last restart left"):
        again.train()
    assert not watch.steps


class MergesAndUnmerges(TrainerCallback):
    """As TRL does to generate with the merged model; in bf16 each pair rounds the base weights."""

    def on_step_end(self, args, state, control, model, **kwargs):
        model.merge_adapter()
        model.unmerge_adapter()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["relora", "remora"])
def test_an_adapter_that_was_merged_and_unmerged_between_restarts_is_restarted(method, precision, tmp_path):
    trainer, restart, _ = trainer_for(method, tmp_path)
    if precision == "bf16":
        trainer.model.to(torch.bfloat16)
    trainer.add_callback(MergesAndUnmerges())
    trainer.train()
    assert [facts["restart"] for facts in restart.history] == [1, 2, 3]


def test_a_later_adapter_on_other_layers_is_restarted_too(tmp_path):
    first, _, _ = trainer_for("remora", tmp_path / "first", stop=6)
    first.train()
    model = first.model
    config = copy.copy(model.peft_config["default"])
    config.target_modules = {"q_proj", "v_proj", "up_proj"}
    model.delete_adapter("default")
    model.add_adapter("second", config)
    model.set_adapter("second")
    again, restart, _ = trainer_for("remora", tmp_path / "again", model=model)
    again.train()
    assert len(restart.history) == 3


def test_a_base_weight_that_is_a_buffer_is_restarted(tmp_path):
    model = get_peft_model(base(), MoraConfig(r=2, target_modules=["0"]))
    layer = model.base_model.model[0].get_base_layer()
    weight = layer.weight.data
    del layer.weight
    layer.register_buffer("weight", weight)
    assert len(check_supported(arguments(tmp_path, run_config("remora")), model)) == 1
    model.base_model.model[0].matrix("default").data.normal_()
    expected = weight + model.base_model.model[0].get_delta_weight("default")
    model.merge_adapter()
    torch.testing.assert_close(layer.weight, expected)
