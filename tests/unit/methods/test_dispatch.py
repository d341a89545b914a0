"""A kind of adapter that nothing here makes is refused; it does not train as another one."""

from types import SimpleNamespace

import pytest
from peft import C3AConfig, get_peft_model
from tiny_runs import tiny_config

from mora.config import ConfigError
from mora.methods import prepare
from mora.methods.restarting import adapted_layers
from mora.models.load import load_model


def test_a_kind_without_code_is_refused():
    config = tiny_config("mora")
    adapter = config.method.adapter
    unknown = SimpleNamespace(kind="vera", target_modules=adapter.target_modules)
    config = config.model_copy(update={"method": config.method.model_copy(update={"adapter": unknown})})
    with pytest.raises(ConfigError, match=r"method\.adapter\.kind='vera' \(mora\): mora\.methods has no code for it"):
        prepare(load_model(config.model, "fp32")[0], config)


def test_a_restart_of_an_unknown_layer_is_refused():
    config = tiny_config("relora", "method.restart.every_steps=10", "method.restart.warmup_steps=1")
    model, _ = load_model(config.model, "fp32")
    adapted = get_peft_model(model, C3AConfig(block_size=16, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match=r"q_proj is a C3A\w+, whose update no restart knows"):
        adapted_layers(adapted, config.method.adapter)
