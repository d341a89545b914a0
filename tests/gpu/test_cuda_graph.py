"""A captured step gives what the uncaptured one gives, dropout and accumulation included. Needs a GPU."""

from __future__ import annotations

import pytest
import torch

from mora.config import compose
from mora.data import uuid
from mora.data.batches import Batches
from mora.data.samples import Sample
from mora.methods import prepare
from mora.models.load import load_model
from mora.train.engine import TorchEngine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEPS = 12


def _curve(
    method: list[str], dtype: torch.dtype, graphs: bool, padding_free: bool = False
) -> tuple[list[float], list[float]]:
    config = compose(["task=uuid", *method, "scale=smoke"])
    model, tokenizer = load_model(config.model, "fp32")
    model = prepare(model, config).to("cuda").train()
    engine = TorchEngine(model, config.task.train, dtype, cuda_graphs=graphs)
    samples = [uuid.encode(pair, tokenizer, "all") for pair in uuid.make_pairs(config.task.data)]
    samples = [Sample(s.input_ids[: 20 + i % 40], s.labels[: 20 + i % 40]) for i, s in enumerate(samples)]
    rows = {"micro_batch_tokens": 512, "padding_free": True} if padding_free else {}
    batches = Batches(samples, pad_id=0, global_batch_size=16, micro_batch_size=8, seed=0, **rows)
    losses, norms = [], []
    for step in range(STEPS):
        torch.manual_seed(step)
        tokens = batches.loss_tokens(step)
        losses.append(sum(float(engine.backward(micro, tokens)) for micro in batches.micro_batches(step)))
        norms.append(float(engine.step(3e-3, max_grad_norm=1.0)))
    return losses, norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [["method=fft"], ["method=lora", "r=8"], ["method=mora", "r=8"]], ids=lambda m: m[0])
def test_graph_equals_eager(method, dtype):
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    eager, graphed = _curve(method, dtype, False), _curve(method, dtype, True)
    for plain, captured in zip(eager, graphed, strict=True):
        assert captured == pytest.approx(plain, rel=tolerance)
    assert eager[0][-1] < eager[0][0]  # it learns: equal curves of nothing would prove nothing


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_padding_train_as_padded_ones(dtype, graphs):
    """In bf16 by FlashAttention's kernels for sequences of unequal length."""
    method = ["method=mora", "r=8", "method.adapter.dropout=0"]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    padded, rows = _curve(method, dtype, False), _curve(method, dtype, graphs, padding_free=True)
    for expected, given in zip(padded, rows, strict=True):
        assert given == pytest.approx(expected, rel=tolerance)
