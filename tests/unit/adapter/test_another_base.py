"""Which adapters are said to fit a base that restarts have changed: those that are loaded, and no new one."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from peft import PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils import load_peft_weights

from mora import MoraConfig
from mora.adapter.model import ANOTHER_BASE


@pytest.fixture
def restarted(make_llama, adapt, tmp_path) -> Path:
    """An adapter that fits another base than `make_llama`'s."""
    model = adapt(make_llama(), target_modules=["q_proj"])
    model.peft_config["default"].restarted = True
    model.save_pretrained(tmp_path / "restarted")
    return tmp_path / "restarted"


def from_a_dict(folder):
    return MoraConfig(**json.loads((folder / "adapter_config.json").read_text()))


def added_by_peft(base, config):
    model = get_peft_model(base, MoraConfig(target_modules=["q_proj"]), adapter_name="first")
    model.add_adapter("default", config)
    return model


def added_by_transformers(base, config):
    base.add_adapter(config)
    return base


def injected(base, config):
    return inject_adapter_in_model(config, base)


@pytest.mark.parametrize("read", [MoraConfig.from_pretrained, from_a_dict])
@pytest.mark.parametrize("make", [get_peft_model, added_by_peft, added_by_transformers, injected])
def test_a_new_adapter_fits_its_base_wherever_its_configuration_is_from(make, read, restarted, make_llama, tmp_path):
    config = read(restarted)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=ANOTHER_BASE)
        model = make(make_llama(), config)
    model.peft_config["default"].save_pretrained(tmp_path / "new")
    assert not MoraConfig.from_pretrained(tmp_path / "new").restarted
    assert config.restarted  # whoever reads it once more, to load that adapter, is warned


def test_a_new_adapter_that_is_resumed_fits_its_base(restarted, make_llama, tmp_path):
    model = get_peft_model(make_llama(), MoraConfig.from_pretrained(restarted))
    model.save_pretrained(tmp_path / "checkpoint")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=ANOTHER_BASE)
        model.load_adapter(tmp_path / "checkpoint", "default")  # as the Trainer does
    assert not model.peft_config["default"].restarted


def loaded_by_peft(base, folder):
    return PeftModel.from_pretrained(base, folder)


def loaded_to_train(base, folder):
    return PeftModel.from_pretrained(base, folder, is_trainable=True)


def loaded_with_its_configuration(base, folder):
    return PeftModel.from_pretrained(base, folder, config=MoraConfig.from_pretrained(folder))


def loaded_beside_another(base, folder):
    model = get_peft_model(base, MoraConfig(target_modules=["q_proj"]), adapter_name="first")
    model.load_adapter(folder, "default")
    return model


def loaded_by_transformers(base, folder):
    base.load_adapter(str(folder), is_trainable=True)
    return base


def loaded_by_hand(base, folder):
    model = get_peft_model(base, MoraConfig.from_pretrained(folder))
    set_peft_model_state_dict(model, load_peft_weights(folder))
    return model


@pytest.mark.parametrize(
    "load",
    [
        loaded_by_peft,
        loaded_to_train,
        loaded_with_its_configuration,
        loaded_beside_another,
        loaded_by_transformers,
        loaded_by_hand,
    ],
)
def test_an_adapter_that_is_loaded_says_once_that_it_fits_another_base(load, restarted, make_llama):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = load(make_llama(), restarted)
    (warning,) = (str(w.message) for w in told if ANOTHER_BASE in str(w.message))
    assert "restore_base(model, folder)" in warning
    assert model.peft_config["default"].restarted


def test_a_sum_of_adapters_fits_the_base_that_they_fit(restarted, make_llama):
    with pytest.warns(UserWarning, match=ANOTHER_BASE):
        model = PeftModel.from_pretrained(make_llama(), restarted)
    model.add_weighted_adapter(["default"], [0.5], "halved")
    assert model.peft_config["halved"].restarted
