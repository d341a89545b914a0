"""Quantised bases: PEFT's backends, with a stand-in here and with each package that is installed."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from peft.utils.quantization_utils import QuantizationBackend
from quantised_bases import (
    awq4,
    bnb4,
    bnb8,
    check_gradient,
    check_merge,
    check_training_and_files,
    gptq4,
    hqq4,
    torchao8,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mora import MoraConfig
from mora.adapter import base_layer


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
    find = base_layer.resolve_quantization_backend

    def resolve(module, **options):
        return CoarseBackend() if isinstance(module, Coarse) else find(module, **options)

    monkeypatch.setattr(base_layer, "resolve_quantization_backend", resolve)
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


@pytest.mark.parametrize(("quantise", "off"), [(bnb8, 0.05), (bnb4, 0.3), (torchao8, 0.05), (hqq4, 0.3)])
def test_a_quantised_llama_trains_is_saved_loaded_and_merged(quantise, off, saved_llama, tmp_path):
    model, tokens = check_training_and_files(lambda: quantise(saved_llama, "cpu", torch.float32), tmp_path)
    check_merge(model, tokens, off)


@pytest.mark.parametrize("quantise", [gptq4, awq4])
def test_a_base_of_gptq_or_awq_trains_is_saved_and_loaded_and_refuses_a_merge(quantise, saved_llama, tmp_path):
    model, _ = check_training_and_files(lambda: quantise(saved_llama, "cpu", torch.float32), tmp_path)
    with pytest.raises(TypeError, match="Dequantization is not supported for gptq layers"):
        model.merge_and_unload()
    assert type(model.unload().model.layers[0].self_attn.q_proj).__module__.startswith("gptqmodel.")


@pytest.mark.parametrize("quantise", [bnb8, bnb4, torchao8, hqq4, gptq4, awq4])
def test_the_gradient_on_a_quantised_base_is_that_of_the_reference_form(quantise, saved_llama):
    check_gradient(lambda: quantise(saved_llama, "cpu", torch.float32))


def test_quanto_is_refused_by_name(make_llama, tmp_path):
    pytest.importorskip("optimum.quanto")
    from transformers import QuantoConfig

    make_llama().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QuantoConfig(weights="int8"))
    with pytest.raises(TypeError, match=r"optimum\.quanto.* with a weight of WeightQBytesTensor"):
        get_peft_model(model, MoraConfig(r=2, target_modules=["q_proj"]))
