"""Cross-entropy in chunks against torch's own, and where it may be used."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from mora import MoraConfig
from mora.data.batches import IGNORE, Batch
from mora.models import fused_loss
from mora.models.fused_loss import linear_cross_entropy
from mora.models.losses import token_losses
from mora.models.structure import plain_head


def llama(**more) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, **more
    )
    return LlamaForCausalLM(config).requires_grad_(False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("rows", [1, 37])
def test_losses_and_gradients_equal_torchs(rows, trained, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(fused_loss, "CHUNK_BYTES", 4 * 50 * 10)  # ten tokens per chunk
    torch.manual_seed(0)
    hidden = torch.randn(rows, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, dtype=dtype, requires_grad=trained)
    labels = torch.randint(50, (rows,))
    labels[1::5] = IGNORE
    upstream = torch.randn(rows)
    losses = linear_cross_entropy(hidden, weight, labels, IGNORE)
    inputs = (hidden, weight) if trained else (hidden,)
    gradients = torch.autograd.grad(losses, inputs, upstream)
    wide = hidden.detach().double().requires_grad_()
    wide_weight = weight.detach().double().requires_grad_()
    expected = F.cross_entropy(wide @ wide_weight.T, labels, ignore_index=IGNORE, reduction="none")
    expected_gradients = torch.autograd.grad(expected, (wide, wide_weight)[: len(inputs)], upstream.double())
    assert losses.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients} == {dtype}
    assert (losses[1::5] == 0).all()
    for actual, reference in zip((losses, *gradients), (expected, *expected_gradients), strict=True):
        assert (actual.double() - reference).norm() <= tolerance * reference.norm()


def test_without_a_gradient_only_the_losses_are_computed(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a gradient was computed")

    hidden, weight, labels = torch.randn(8, 16, requires_grad=True), torch.randn(50, 16), torch.randint(50, (8,))
    expected = linear_cross_entropy(hidden, weight, labels, IGNORE)
    monkeypatch.setattr(torch, "mm", refuse)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, labels, IGNORE), expected)


@pytest.mark.parametrize("kind", ["lora", "mora", "full", "full, tied embeddings"])
def test_the_engines_losses_are_those_of_the_models_own_logits(kind, monkeypatch):
    model = llama(tie_word_embeddings="tied" in kind)
    if "full" in kind:
        model.requires_grad_(True)
    else:
        adapter = LoraConfig(r=2) if kind == "lora" else MoraConfig(r=2, init_weights=False)
        adapter.target_modules = {"q_proj", "down_proj"}
        model = get_peft_model(model, adapter)
    ids = torch.randint(90, (2, 12))
    labels = torch.where(torch.rand(2, 12) < 0.3, IGNORE, ids)
    trained = [p for p in model.parameters() if p.requires_grad]

    def losses_and_gradients():
        losses = token_losses(model, Batch(ids, labels))
        return losses, torch.autograd.grad(losses.sum(), trained)

    assert plain_head(model) is not None
    chunked = losses_and_gradients()
    monkeypatch.setattr("mora.models.losses.plain_head", lambda model: None)
    whole = losses_and_gradients()
    torch.testing.assert_close(chunked, whole)


def test_a_head_that_is_more_than_a_product_is_left_alone():
    assert plain_head(llama()) is not None
    assert plain_head(get_peft_model(llama(), MoraConfig(r=2, target_modules=["lm_head"]))) is None
    assert plain_head(get_peft_model(llama(), LoraConfig(r=2, modules_to_save=["lm_head"]))) is None
    biased = llama()
    biased.lm_head = torch.nn.Linear(32, 90).requires_grad_(False)
    assert plain_head(biased) is None
    hooked = llama()
    hooked.lm_head.register_forward_hook(lambda *_: None)
    assert plain_head(hooked) is None
