"""Adapters that are scored: every weight in its place, their own tokenizer, or an error; never the base in their name."""

import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mora import MoraConfig
from mora.analysis import spectrum
from mora.errors import ModelError
from mora.models.load import load_any as load
from mora.models.tokenizers import character_tokenizer


def tiny_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(character_tokenizer()), **sizes))


@pytest.fixture
def base(tmp_path):
    """A checkpoint with its tokenizer; the folder of an adapter is beside it."""
    tiny_llama().save_pretrained(tmp_path / "base")
    character_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(base, config):
    """Saves an adapter whose update is not zero, on the base in that folder."""
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.1)
    model.save_pretrained(base.parent / "adapter")
    return base.parent / "adapter", model


CONFIGS = {
    "mora": MoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "lora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "dora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=True),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_that_fits_is_merged(base, kind):
    folder, model = adapter(base, CONFIGS[kind])
    loaded, _ = load(str(folder), "fp32")
    tokens = torch.arange(3, 20)[None]
    torch.testing.assert_close(loaded(tokens).logits, model.eval()(tokens).logits, rtol=1e-4, atol=1e-5)


def renamed(keys):
    return {key.replace("model.model.layers", "model.layers"): value for key, value in keys.items()}


def without_one(keys):
    return dict(sorted(keys.items())[1:])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    ("change", "said"), [(renamed, "names no module of its base"), (without_one, "is missing in it")]
)
def test_one_that_fits_in_part_or_not_at_all_is_refused(base, kind, change, said):
    folder, _ = adapter(base, CONFIGS[kind])
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(ModelError, match=rf"does not fit its base: \S*layers\S* {said}"):
        load(str(folder), "fp32")
    with pytest.raises(ModelError, match=said):
        spectrum.of_models(str(base), str(folder))


def test_a_kind_without_a_merged_form_is_refused_in_a_line(base):
    folder, _ = adapter(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ModelError, match="is of kind PROMPT_TUNING, which cannot be merged"):
        load(str(folder), "fp32")


def test_the_adapters_own_tokenizer_is_used(base):
    folder, _ = adapter(base, CONFIGS["mora"])
    assert load(str(folder), "fp32")[1].eos_token == "</s>", "without one, its base's"
    own = character_tokenizer()
    own.eos_token = "\n"
    own.save_pretrained(folder)
    assert load(str(folder), "fp32")[1].eos_token == "\n"


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(base):
    folder, _ = adapter(base, CONFIGS["mora"])
    own = character_tokenizer()
    own.add_tokens(["<tool>"])
    own.save_pretrained(folder)
    with pytest.raises(ModelError, match="has 104 tokens, its base 103 embeddings"):
        load(str(folder), "fp32")


def test_a_checkpoint_that_needs_a_missing_package_is_refused_in_a_line(base):
    path = base / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(str(base), "fp32")
