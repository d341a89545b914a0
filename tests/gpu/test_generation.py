"""Decoding by a CUDA graph against transformers' own generation. Needs a GPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mora.config import compose
from mora.evaluate.generation import fixed_steps_suit, greedy
from mora.methods import prepare

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_captured_step_makes_the_tokens_that_transformers_makes(family, monkeypatch):
    """Rows of different lengths, more tokens than a cache grows by at once, rows that stop at different times."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    torch.manual_seed(0)
    more = {"sliding_window": None} if family == "mistral" else {"head_dim": 16} if family == "qwen3" else {}
    config = AutoConfig.for_model(
        family,
        vocab_size=211, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).cuda().eval()
    ids = torch.randint(3, 211, (6, 20), device="cuda")
    mask = torch.ones_like(ids)
    for row, padded in enumerate((0, 3, 0, 7, 19, 1)):
        ids[row, :padded], mask[row, :padded] = 0, 0
    assert fixed_steps_suit(model)
    plain = model.generate(
        ids, attention_mask=mask, max_new_tokens=300, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    expected = plain[:, 20:].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a step that could not be captured warns
        generated = greedy(model, ids, mask, 300, [], lambda rows: [False] * len(rows), True, logits_to_keep=1)
        assert generated == expected
        lengths = {tuple(row): 40 * (i + 1) for i, row in enumerate(expected)}

        def stopped(rows: list[list[int]]) -> list[bool]:
            return [any(len(row) >= n and list(key)[: len(row)] == row for key, n in lengths.items()) for row in rows]

        ended = greedy(model, ids, mask, 300, [], stopped, True, logits_to_keep=1)
    for row, whole, n in zip(ended, expected, sorted(lengths.values()), strict=True):
        assert row == whole[: len(row)]
        assert n <= len(row) < n + 8


def test_a_captured_step_of_a_model_with_its_adapter(monkeypatch):
    """As a run with task.evaluation.merge=false recites; qwen2 has biases, which are added after the update."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2", vocab_size=211, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config)
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model = prepare(base, compose(["task=uuid", "method=mora", "r=8", "scale=smoke"])).cuda().eval()
    ids, mask = (torch.randint(3, 211, (6, 20), device="cuda"), torch.ones(6, 20, dtype=torch.long, device="cuda"))
    untouched = greedy(model, ids, mask, 64, [], lambda rows: [False] * len(rows), True)
    for name, parameter in model.named_parameters():
        if "mora_M" in name:
            parameter.data.normal_(0, 0.1)
    assert fixed_steps_suit(model)
    expected = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, 20:].tolist()
    assert expected != untouched
    assert greedy(model, ids, mask, 64, [], lambda rows: [False] * len(rows), True) == expected
