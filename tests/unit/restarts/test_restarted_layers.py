"""Which layers a restart works on, and whose configuration it changes."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from mora import MoraConfig
from mora.restarts.layers import set_groups


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
