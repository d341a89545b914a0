"""How well values are known when every earlier character is given: cheap, so that it can be measured along a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from mora.data.batches import IGNORE, Sample, collate
from mora.train.engine import token_losses
from mora.train.interface import Engine


@torch.no_grad()
def score(engine: Engine, samples: Sequence[Sample], pad_id: int, batch_size: int) -> dict[str, float]:
    """Over the tokens after each prompt: `value_nll`, nats a sample, and `value_token_acc`, the share that is the argmax."""
    engine.model.eval()
    nll = hits = tokens = 0.0
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        values = [Sample(s.input_ids, [IGNORE] * s.n_prompt + s.input_ids[s.n_prompt :]) for s in chunk]
        batch = collate(values, pad_id).to(engine.device)
        labels = batch.labels[:, 1:]
        logits = engine.model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]
        known = labels != IGNORE
        logits, labels = logits[known].float(), labels[known]
        nll += float(F.cross_entropy(logits, labels, reduction="sum"))
        hits += float((logits.argmax(-1) == labels).sum())
        tokens += labels.numel()
    return {"value_nll": nll / len(samples), "value_token_acc": hits / tokens}


@torch.no_grad()
def validation_loss(engine: Engine, samples: Sequence[Sample], pad_id: int, batch_size: int) -> dict[str, float]:
    """`validation_loss`: nats a token that carries a loss, over held-out samples."""
    engine.model.eval()
    nll, tokens = 0.0, 0
    for start in range(0, len(samples), batch_size):
        chunk = list(samples[start : start + batch_size])
        nll += float(token_losses(engine.model, collate(chunk, pad_id).to(engine.device)).double().sum())
        tokens += sum(sample.n_loss for sample in chunk)
    return {"validation_loss": nll / tokens}
