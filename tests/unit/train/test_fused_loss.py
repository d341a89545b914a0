"""Cross-entropy in chunks against torch's own, and where it may be used."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mora import MoraConfig
from mora.data.batches import IGNORE, Batch
from mora.train import fused_loss
from mora.train.engine import token_losses
from mora.train.fused_loss import linear_cross_entropy, plain_head


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).requires_grad_(False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows", [1, 37])
def test_losses_and_gradients_equal_torchs(rows, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(fused_loss, "CHUNK_BYTES", 4 * 50 * 10)  # ten tokens a chunk
    hidden, weight = torch.randn(rows, 16, dtype=dtype, requires_grad=True), torch.randn(50, 16, dtype=dtype)
    labels = torch.randint(50, (rows,))
    labels[1::5] = IGNORE
    upstream = torch.randn(rows)
    losses = linear_cross_entropy(hidden, weight, labels, IGNORE)
    (gradient,) = torch.autograd.grad(losses, hidden, upstream)
    wide = hidden.detach().double().requires_grad_()
    expected = F.cross_entropy(wide @ weight.double().T, labels, ignore_index=IGNORE, reduction="none")
    (expected_gradient,) = torch.autograd.grad(expected, wide, upstream.double())
    assert (losses.dtype, gradient.dtype) == (torch.float32, dtype)
    assert (losses[1::5] == 0).all()
    for actual, reference in ((losses, expected), (gradient, expected_gradient)):
        assert (actual.double() - reference).norm() <= tolerance * reference.norm()


def test_without_a_gradient_only_the_losses_are_computed(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a gradient was computed")

    hidden, weight, labels = torch.randn(8, 16, requires_grad=True), torch.randn(50, 16), torch.randint(50, (8,))
    expected = linear_cross_entropy(hidden, weight, labels, IGNORE)
    monkeypatch.setattr(torch, "mm", refuse)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, labels, IGNORE), expected)


@pytest.mark.parametrize("adapter", [LoraConfig(r=2), MoraConfig(r=2, init_weights=False)], ids=["lora", "mora"])
def test_the_engines_losses_are_those_of_the_models_own_logits(adapter, monkeypatch):
    adapter.target_modules = {"q_proj", "down_proj"}
    model = get_peft_model(llama(), adapter)
    ids = torch.randint(90, (2, 12))
    labels = torch.where(torch.rand(2, 12) < 0.3, IGNORE, ids)
    trained = [p for p in model.parameters() if p.requires_grad]

    def losses_and_gradients():
        losses = token_losses(model, Batch(ids, labels))
        return losses, torch.autograd.grad(losses.sum(), trained)

    assert plain_head(model) is not None
    chunked = losses_and_gradients()
    monkeypatch.setattr("mora.train.engine.plain_head", lambda model: None)
    whole = losses_and_gradients()
    torch.testing.assert_close(chunked, whole)


def test_a_head_that_is_more_than_a_frozen_product_is_left_alone():
    assert plain_head(llama()) is not None
    assert plain_head(llama().requires_grad_(True)) is None
    assert plain_head(get_peft_model(llama(), MoraConfig(r=2, target_modules=["lm_head"]))) is None
    assert plain_head(get_peft_model(llama(), LoraConfig(r=2, modules_to_save=["lm_head"]))) is None
    small = GPT2Config(vocab_size=48, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    assert plain_head(GPT2LMHeadModel(small).requires_grad_(False)) is None
    hooked = llama()
    hooked.lm_head.register_forward_hook(lambda *_: None)
    assert plain_head(hooked) is None
