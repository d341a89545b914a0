"""liger's layers compute what transformers' do. Needs a GPU and liger-kernel."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mora.config import compose
from mora.methods import prepare
from mora.models.fused import use_fused_layers
from mora.models.load import load_model

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None,
    reason="needs a GPU and liger-kernel",
)


def test_logits_and_gradients_are_those_of_plain_layers():
    config = compose(["task=uuid", "method=mora", "r=8", "scale=smoke"])
    ids = torch.randint(3, 100, (4, 48), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    outcomes = []
    for fused in (False, True):
        model, _ = load_model(config.model, "fp32")
        model = model.to("cuda")
        if fused:
            assert use_fused_layers(model)
        model = prepare(model, config).to("cuda").eval()
        logits = model(input_ids=ids).logits
        logits.float().square().mean().backward()
        outcomes.append([logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-4)
