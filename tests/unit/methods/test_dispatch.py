"""A kind of adapter that nothing here makes is refused; it does not train as another one."""

import pytest
from peft import C3AConfig, get_peft_model
from tiny_runs import tiny_config

from mora.config import ConfigError
from mora.families.tools.restarting import restarted_layers
from mora.models.load import load_model


def test_a_kind_without_code_is_refused():
    with pytest.raises(ConfigError, match=r"method\.adapter\.kind='vera': expected one of 'lora', 'mora', 'peft'"):
        tiny_config("mora", "method.adapter.kind=vera")


def test_a_file_in_families_registers_its_kind(tmp_path, monkeypatch):
    """What a new kind of adapter needs beside its YAML: one class, of which nothing else is told."""
    import mora.families

    (tmp_path / "identity.py").write_text(
        "from typing import Literal\nfrom mora.families.base import Family\n"
        "class Identity(Family):\n    kind: Literal['identity']\n    strength: float\n"
    )
    monkeypatch.setattr(mora.families, "__path__", [*mora.families.__path__, str(tmp_path)])
    known = mora.families.families()
    assert {*known} == {"lora", "mora", "peft", "identity"}
    assert known["identity"].model_validate({"kind": "identity", "strength": 2.0}).modules == "all-linear"


def test_a_restart_of_an_unknown_layer_is_refused():
    config = tiny_config("relora", "method.restart.every_steps=10", "method.restart.warmup_steps=1")
    model, _ = load_model(config.model, "fp32")
    adapted = get_peft_model(model, C3AConfig(block_size=16, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match=r"q_proj is a C3A\w+, whose update no restart knows"):
        restarted_layers(adapted)
