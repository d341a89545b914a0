"""Quantised bases: PEFT's backends, with a stand-in here and, where they are installed, bitsandbytes and torchao."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mora import MoraConfig
from mora.adapter import base as base_file


class Coarse(nn.Module):
    """A linear layer that keeps its weight in steps of 1/16."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.randint(-8, 8, (out_features, in_features), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float() / 16).mT


class CoarseBackend(QuantizationBackend):
    layer_type, supports_merge, backend_name = "linear", True, "coarse"

    def get_base_weight(self, base_layer):
        return base_layer.weight.float() / 16

    def set_base_weight(self, peft_layer, weight_data):
        peft_layer.get_base_layer().weight.copy_((weight_data * 16).round())


@pytest.fixture
def coarse(monkeypatch):
    find = base_file.resolve_quantization_backend

    def resolve(module, **options):
        return CoarseBackend() if isinstance(module, Coarse) else find(module, **options)

    monkeypatch.setattr(base_file, "resolve_quantization_backend", resolve)
    config = MoraConfig(r=2, target_modules=["0"], operator="rotation", init_weights=False)
    return get_peft_model(nn.Sequential(Coarse(20, 32)), config)


def test_a_quantised_base_trains_and_adds_the_update(coarse, mora_layers, x):
    layer = mora_layers(coarse)["0"]
    assert layer.get_delta_weight("default").dtype == torch.float32
    expected = layer.base_layer(x) + x @ layer.get_delta_weight("default").mT
    torch.testing.assert_close(coarse(x), expected, rtol=1e-4, atol=1e-5)
    coarse(x).sum().backward()
    assert layer.matrix("default").grad.any()


def test_a_merge_into_a_quantised_base_says_its_error(coarse, mora_layers, x):
    layer, adapted = mora_layers(coarse)["0"], coarse(x)
    exact = layer.base_layer.weight.float() / 16 + layer.get_delta_weight("default")
    with pytest.warns(UserWarning, match="merged into a quantised base, whose rounding is") as said:
        merged = coarse.merge_and_unload(safe_merge=True)
    error = (merged[0].weight.float() / 16 - exact).norm() / layer.get_delta_weight("default").norm()
    assert f"is {error.item():.2g} of the update's size" in str(said[0].message)
    assert (merged(x) - adapted).norm() < 0.3 * adapted.norm()


def bnb8():
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def bnb4():
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_type="nf4")


def torchao8():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("make", "off"), [(bnb8, 0.05), (bnb4, 0.3), (torchao8, 0.05)])
def test_a_quantised_llama_trains_is_saved_loaded_and_merged(make, off, make_llama, tokens, tmp_path):
    settings = make()
    make_llama().save_pretrained(tmp_path / "base")

    def load():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=settings, device_map="cpu")

    config = MoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_weights=False)
    model = get_peft_model(load(), config)
    model(tokens, labels=tokens).loss.backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        adapted = model(tokens).logits
        loaded = PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(tokens).logits, adapted)
        with model.disable_adapter():
            effect = (model(tokens).logits - adapted).norm()
        assert effect > 0.1
        assert (model.merge_and_unload(safe_merge=True)(tokens).logits - adapted).norm() < off * effect


@pytest.mark.skipif(importlib.util.find_spec("optimum") is None, reason="needs optimum-quanto")
def test_quanto_is_refused_by_name(make_llama, tmp_path):
    from transformers import QuantoConfig

    make_llama().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QuantoConfig(weights="int8"))
    with pytest.raises(TypeError, match=r"optimum\.quanto.* with a weight of WeightQBytesTensor"):
        get_peft_model(model, MoraConfig(r=2, target_modules=["q_proj"]))
