"""liger's layers compute what transformers' do, in every family that gets them. Needs a GPU and liger-kernel."""

from __future__ import annotations

import copy
import importlib.util
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mora.config import compose
from mora.methods import prepare
from mora.models.fused import use_fused_layers

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None,
    reason="needs a GPU and liger-kernel",
)
WIDTHS = {
    "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 104, "initializer_range": 0.09,
}  # fmt: skip


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def family(request):
    """A family whose classes are its own again after the test: liger-kernel replaces them for the whole process."""
    AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **WIDTHS))
    module = sys.modules[f"transformers.models.{request.param}.modeling_{request.param}"]
    before = dict(vars(module))
    yield request.param
    vars(module).update(before)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients_are_those_of_plain_layers(family, tied):
    config = compose(["task=uuid", "method=mora", "r=8", "scale=smoke"])
    ids = torch.randint(3, 100, (4, 48), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    torch.manual_seed(0)
    more = {"head_dim": 32} if family == "qwen3" else {}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **WIDTHS, **more, tie_word_embeddings=tied))
    outcomes = []
    for fused in (False, True):
        model = copy.deepcopy(base).to("cuda")
        if fused:
            assert use_fused_layers(model)
        model = prepare(model, config).to("cuda").eval()
        logits = model(input_ids=ids).logits
        logits.float().square().mean().backward()
        outcomes.append([logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-4)


def test_a_second_model_of_the_process_is_known_to_be_fused(family):
    config = AutoConfig.for_model(family, **WIDTHS)
    assert use_fused_layers(AutoModelForCausalLM.from_config(config))
    assert use_fused_layers(AutoModelForCausalLM.from_config(config))
