"""The loss kernel on a GPU against torch's own cross-entropy in fp64. Needs a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mora.data.batches import IGNORE
from mora.models.fused_loss import linear_cross_entropy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 90), (300, 32000), (1500, 49153)])
def test_losses_and_gradients(rows, vocabulary, trained, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    torch.manual_seed(0)
    hidden = torch.randn(rows, 64, dtype=dtype, device="cuda", requires_grad=True)
    weight = torch.randn(vocabulary, 64, dtype=dtype, device="cuda", requires_grad=trained)
    labels = torch.randint(vocabulary, (rows,), device="cuda")
    labels[1::5] = IGNORE
    upstream = torch.rand(rows, device="cuda")
    inputs = (hidden, weight) if trained else (hidden,)
    losses = linear_cross_entropy(hidden, weight, labels, IGNORE)
    gradients = torch.autograd.grad(losses, inputs, upstream)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = F.cross_entropy(wide[0] @ wide[1].T, labels, ignore_index=IGNORE, reduction="none")
    references = torch.autograd.grad(expected, wide[: len(inputs)], upstream.double())
    for actual, reference in zip((losses, *gradients), (expected, *references), strict=True):
        assert (actual.double() - reference).norm() <= tolerance * reference.norm()
