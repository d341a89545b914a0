"""Quantised bases on a GPU, in bf16: each scheme whose package is installed."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from quantised_bases import (
    bnb4,
    bnb8,
    check_gradient,
    check_merge,
    check_training_and_files,
    hqq4,
    torchao4,
    torchao8,
)

from mora import MoraConfig
from mora.bench.quantised import quantised

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("quantise", "off"), [(bnb8, 0.1), (bnb4, 0.3), (torchao8, 0.1), (hqq4, 0.3)])
def test_a_quantised_llama_trains_is_saved_loaded_and_merged(quantise, off, saved_llama, tmp_path):
    model, tokens = check_training_and_files(lambda: quantise(saved_llama, "cuda", torch.bfloat16), tmp_path)
    check_merge(model, tokens, off)


@pytest.mark.parametrize("quantise", [bnb8, bnb4, torchao8, hqq4])
def test_the_gradient_on_a_quantised_base_is_that_of_the_reference_form(quantise, saved_llama):
    check_gradient(lambda: quantise(saved_llama, "cuda", torch.bfloat16))


def test_the_benchmarks_8_bit_base_has_8_bits_before_its_first_pass():
    pytest.importorskip("bitsandbytes")
    base = quantised("tiny", "int8", torch.device("cuda"))
    assert {p.dtype for name, p in base.named_parameters() if "_proj" in name} == {torch.int8}


def test_int4_of_torchao_takes_a_trained_adapter_and_neither_trains_nor_merges(saved_llama, tmp_path):
    """torch has no derivative of its int4 product, torchao no way back from the layout: LoRA meets the same errors."""
    torch.manual_seed(0)
    config = MoraConfig(r=4, target_modules="all-linear", init_weights=False)
    get_peft_model(bnb4(saved_llama, "cuda", torch.bfloat16), config).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(torchao4(saved_llama, "cuda", torch.bfloat16), tmp_path, is_trainable=True).eval()
    tokens = torch.randint(48, (2, 9), device="cuda")
    with torch.no_grad(), model.disable_adapter():
        plain = model(tokens).logits
    out = model(tokens, labels=tokens)
    assert (out.logits - plain).norm() > 0.1 * plain.norm()
    with pytest.raises(RuntimeError, match="derivative for aten::_weight_int4pack_mm is not implemented"):
        out.loss.backward()
    with pytest.raises(NotImplementedError, match="do not support dequantization"):
        model.merge_and_unload()
