"""`adapter_names`: which adapter the rows of a layer's input go through, where that is known, and the refusal where not."""

from __future__ import annotations

import re

import pytest
import torch
from model_checks import assert_close
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GenerationConfig, LongformerConfig, LongformerModel, T5Config, T5ForConditionalGeneration

from mora import MoraConfig

NAMES = ["default", "b"]


def with_two(base: nn.Module, **options) -> PeftModel:
    settings = {"r": 2, "operator": "sharing", "init_weights": False} | options
    model = get_peft_model(base.eval(), MoraConfig(**settings))
    model.add_adapter("b", MoraConfig(**settings))
    return model.eval()


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=48, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0,
        initializer_factor=4.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def check_generation(model: PeftModel, tokens: Tensor, sequences: int = 1, **options) -> None:
    """Each row's sequences are those of its adapter alone, and the adapters differ."""
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": 47} | options
    mixed = model.generate(input_ids=tokens, adapter_names=NAMES, **options).unflatten(0, (2, sequences))
    alone = []
    for row, name in enumerate(NAMES):
        model.set_adapter(name)
        alone.append(model.generate(input_ids=tokens[row : row + 1], **options))
        assert torch.equal(mixed[row][:, : alone[-1].shape[1]], alone[-1])
    model.set_adapter("default")
    other = model.generate(input_ids=tokens[1:], **options)
    assert other.shape != alone[1].shape or not torch.equal(other, alone[1])


@pytest.mark.parametrize("make", ["llama", "t5"])
@pytest.mark.parametrize(
    ("sequences", "options"),
    [
        pytest.param(1, {"num_beams": 2}, id="beams"),
        pytest.param(2, {"num_beams": 3, "num_return_sequences": 2}, id="beams-and-sequences"),
        pytest.param(3, {"do_sample": True, "top_k": 1, "num_return_sequences": 3}, id="sequences"),
    ],
)
def test_every_sequence_of_a_row_comes_from_the_rows_adapter(make, sequences, options, make_llama, tokens):
    base, targets = (make_llama(), ["q_proj", "down_proj"]) if make == "llama" else (t5(), ["q", "k", "wi", "wo"])
    check_generation(with_two(base, target_modules=targets), tokens, sequences, **options)


def test_beams_are_known_from_either_generation_config(make_llama, tokens):
    model = with_two(make_llama(), target_modules=["q_proj", "down_proj"])
    check_generation(model, tokens, generation_config=GenerationConfig(num_beams=2, max_new_tokens=4))
    model.base_model.model.generation_config.num_beams = 2
    check_generation(model, tokens)


def test_tokens_that_train_are_those_of_the_rows_adapter_in_encoder_and_decoder(tokens):
    model = with_two(t5(), target_modules=["q", "wi"], trainable_token_indices=list(range(10)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "trainable_tokens_delta" in name:
                p.copy_(torch.randn_like(p) * 4)
    check_generation(model, tokens % 10, num_beams=2)


class Around(nn.Module):
    """A layer `lin` whose input has rows of its own kind: `view` makes them from (rows of the batch, tokens, 8)."""

    def __init__(self, view):
        super().__init__()
        self.lin, self.view = nn.Linear(8, 8), view

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(self.view(x))


@pytest.mark.parametrize(
    ("view", "rows"),
    [
        (lambda x: x.transpose(0, 1), 6),
        (lambda x: x.flatten(0, 1), 12),
        (lambda x: x.flatten(0, 1)[:4], 4),
        (lambda x: x.repeat(2, 1, 1), 4),  # two halves of a batch, as classifier-free guidance makes them
        (lambda x: x[:1], 1),
        (lambda x: x[:0], 0),
    ],
    ids=["sequence-first", "flattened", "routed", "doubled", "fewer", "none"],
)
def test_rows_that_are_not_those_of_the_batch_are_refused(view, rows):
    model = with_two(Around(view), target_modules=["lin"])
    said = f"adapter_names: 2 names for an input of {rows} rows in lin: expected 2 rows. Give one name per row of the batch."
    with pytest.raises(ValueError, match=f"^{re.escape(said)}.*leave it out of target_modules"):
        model(torch.randn(2, 6, 8), adapter_names=NAMES)


@pytest.mark.parametrize("target", ["out_proj", "linear1"])
def test_layers_whose_weight_is_read_and_that_are_not_called_are_refused(target):
    base = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    model = with_two(base, target_modules=[target])
    with pytest.raises(ValueError, match=r"^adapter_names: 0 is a TransformerEncoderLayer, which reads the weights"):
        model(torch.randn(2, 6, 8), adapter_names=NAMES)


def test_more_rows_than_names_are_no_beams_outside_generation(make_llama, tokens):
    model = with_two(make_llama(), target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"2 names for an input of 4 rows in model\.layers\.0\.self_attn\.q_proj"):
        model(tokens.repeat(2, 1), adapter_names=NAMES)
    with pytest.raises(ValueError, match=r"2 names for an input of 6 rows .*: expected 2 rows, or 4 in generation"):
        model.generate(tokens.repeat_interleave(3, 0)[:3], adapter_names=NAMES, num_beams=2, max_new_tokens=2)


def test_longformer_whose_attention_puts_tokens_first_is_refused():
    config = LongformerConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        attention_window=8, max_position_embeddings=40,
    )  # fmt: skip
    ids = torch.randint(2, 48, (2, 16))
    model = with_two(LongformerModel(config, add_pooling_layer=False), target_modules=["query", "value"])
    with pytest.raises(
        ValueError, match=r"2 names for an input of 16 rows in encoder\.layer\.0\.attention\.self\.query"
    ):
        model(ids, adapter_names=NAMES)
    model = with_two(LongformerModel(config, add_pooling_layer=False), target_modules=["intermediate.dense"])
    mixed = model(ids, adapter_names=NAMES).last_hidden_state
    for row, name in enumerate(NAMES):
        model.set_adapter(name)
        assert_close(mixed[row], model(ids).last_hidden_state[row])
