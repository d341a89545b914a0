"""The loss of a batch, and the hidden states that it is computed from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn import functional as F

from mora.data.batches import IGNORE, Batch

from .attention import within, without_mask
from .cached_prefix import CachedPrefix
from .fused_loss import linear_cross_entropy
from .structure import causal_model, needs_no_mask, plain_head


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy of every label in nats, as fp32 (B, T - 1); it is 0 where there is no label."""
    states = hidden_states(model, batch)
    if states is not None:
        hidden, weight = states[0][:, :-1], states[1]
        labels = batch.labels[:, 1:]
        return linear_cross_entropy(hidden.flatten(0, 1), weight, labels.flatten(), IGNORE).view(labels.shape)
    with _attention(model, batch):
        logits = model(**_inputs(batch), use_cache=False).logits
    labels = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)  # shifts the labels instead of the large logits
    flat = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(labels.shape)[:, :-1]


def hidden_states(model: nn.Module, batch: Batch, prefix: CachedPrefix | None = None) -> tuple[Tensor, Tensor] | None:
    """Return hidden states (B, T, H) and the head's weight (V, H), whose product is the logits; None if it is not.

    With a `prefix`, the batch has the tokens that follow it.
    """
    head = plain_head(model)
    if head is None:
        return None
    trunk, weight = head
    if prefix is not None:
        return prefix.continued(batch.input_ids), weight
    alone = batch.position_ids is None and needs_no_mask(model, batch.input_ids.shape[1])
    with without_mask(trunk) if alone else _attention(model, batch):
        return trunk(**_inputs(batch), use_cache=False).last_hidden_state, weight


def _attention(model: nn.Module, batch: Batch) -> AbstractContextManager[None]:
    if batch.bounds is None:
        return nullcontext()
    causal = causal_model(model)
    assert causal is not None  # only transformers models train without padding
    return within(causal.base_model, batch.bounds)


def _inputs(batch: Batch) -> dict[str, Tensor]:
    positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    return {"input_ids": batch.input_ids, **positions}
