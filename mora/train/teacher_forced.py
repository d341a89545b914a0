"""Teacher-forced scores and losses: each token is predicted from all tokens before it, which is cheap during a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mora.data.batches import IGNORE, Batch, Sample, collate
from mora.models.fused_loss import parts
from mora.models.losses import hidden_states, token_losses
from mora.train.interface import Engine


@torch.no_grad()
def score(engine: Engine, samples: Sequence[Sample], pad_id: int, batch_size: int) -> dict[str, float]:
    """Score the tokens after each prompt.

    Returns:
        `value_nll`, in nats per sample, and `value_token_acc`, the share of tokens that have the largest logit.
    """
    engine.model.eval()
    sums, tokens = [], 0
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        values = [Sample(s.input_ids, [IGNORE] * s.n_prompt + s.input_ids[s.n_prompt :]) for s in chunk]
        batch = collate(values, pad_id)
        # Computed on the host, so as not to wait for the GPU.
        known = F.pad(batch.labels[:, 1:] != IGNORE, (0, 1)).flatten().nonzero()[:, 0]
        labels = batch.labels.flatten()[known + 1].to(engine.device)
        for logits, right in _logits(engine.model, batch.to(engine.device), known.to(engine.device), labels):
            nll = F.cross_entropy(logits, right, reduction="sum")
            sums.append(torch.stack([nll.double(), (logits.argmax(-1) == right).sum().double()]))
        tokens += labels.numel()
    nats, hits = torch.stack(sums).sum(0).tolist()
    return {"value_nll": nats / len(samples), "value_token_acc": hits / tokens}


def _logits(model: nn.Module, batch: Batch, known: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the fp32 logits at the flattened positions `known`, a chunk at a time, with their labels."""
    states = hidden_states(model, batch)
    if states is None:
        yield model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[known].float(), labels
        return
    hidden, weight = states[0].flatten(0, 1)[known], states[1]
    for part in parts(hidden, weight):
        yield F.linear(hidden[part], weight).float(), labels[part]


@torch.no_grad()
def validation_loss(engine: Engine, samples: Sequence[Sample], pad_id: int, batch_size: int) -> dict[str, float]:
    """Return `validation_loss`: over held-out samples, the nats per token that carries a loss."""
    engine.model.eval()
    sums = []
    for start in range(0, len(samples), batch_size):
        batch = collate(list(samples[start : start + batch_size]), pad_id).to(engine.device)
        sums.append(token_losses(engine.model, batch).double().sum())
    tokens = sum(sample.n_loss for sample in samples)
    return {"validation_loss": float(torch.stack(sums).sum()) / tokens}
