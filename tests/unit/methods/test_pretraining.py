"""The models that are pretrained, and what trains in them."""

import pytest
import torch
from tiny_runs import tiny_config
from transformers import LlamaConfig, LlamaForCausalLM

from mora.config.cached_composition import compose_cached as compose
from mora.methods import parameter_groups, prepare, train_rest, trainable
from mora.models.load import load_model


# Counted by hand: 2 V h for embeddings and head, a layer 4 h h + 3 h f + 2 h, the last norm h.
@pytest.mark.parametrize(
    ("name", "h", "f", "layers", "millions"),
    [("llama_60m", 512, 1376, 8, 58.2), ("llama_250m", 768, 2560, 24, 247.5), ("llama_1b3", 2048, 5461, 24, 1339.5)],
)
def test_the_shapes_are_those_of_relora(name, h, f, layers, millions):
    model = compose(["task=uuid", "method=fft", f"model={name}"]).model
    with torch.device("meta"):
        built = LlamaForCausalLM(LlamaConfig(**model.architecture))
    count = sum(p.numel() for p in built.parameters())
    assert count == 2 * 32100 * h + layers * (4 * h * h + 3 * h * f + 2 * h) + h
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_in_pretraining_every_module_without_an_adapter_trains_and_the_base_of_the_others_does_not(method):
    config = tiny_config(method)
    model = prepare(load_model(config.model, "fp32")[0], config)
    adapters = set(trainable(model))
    train_rest(model)
    rest = set(trainable(model)) - adapters
    assert {name.split(".")[-2] for name in rest} == {
        "embed_tokens",
        "lm_head",
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
    }
    groups = parameter_groups(model, config)
    assert {name for g in groups if g.adapter for name in g.parameters} == adapters
    assert {name for g in groups if not g.adapter for name in g.parameters} == rest


def test_alpha_is_the_official_64_at_the_paper_s_rank():
    assert compose(["task=uuid", "method=lora", "r=128", "model=llama_250m"]).lora_alpha() == 64
