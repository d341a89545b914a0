"""Attention without a mask: of rows that are one sequence each, and of a row of several that do not see each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# transformers makes no mask for a function that it does not know
WITHOUT_MASK, WITHIN = "sdpa_without_mask", "sdpa_within_sequences"
_bounds: Tensor | None = None  # of the row that is being computed


@contextmanager
def without_mask(trunk: nn.Module) -> Iterator[None]:
    """Context manager: every row of a batch is one causal sequence without padding before its end.

    `mora.models.structure.needs_no_mask` says for which models. transformers looks for packed sequences in the positions, so
    that on a GPU the host waits for the device in every pass. Under capture, where it may not wait, it makes a mask, with
    which attention repeats keys and values, keeps the mask once per layer and takes a slower kernel than FlashAttention.
    """
    with _by(trunk, WITHOUT_MASK):
        yield


@contextmanager
def within(trunk: nn.Module, bounds: Tensor) -> Iterator[None]:
    """Context manager: the trunk's inputs are one row (1, T) of sequences.

    Args:
        trunk: Of a transformers model.
        bounds: int32, (N + 1,), on the model's device: 0, where each sequence ends, and T as often as N asks for.
    """
    global _bounds
    before, _bounds = _bounds, bounds
    try:
        with _by(trunk, WITHIN):
            yield
    finally:
        _bounds = before


@contextmanager
def _by(trunk: nn.Module, function: str) -> Iterator[None]:
    config: Any = trunk.config
    before = config._attn_implementation
    config._attn_implementation = function
    try:
        yield
    finally:
        config._attn_implementation = before


def _within_sequences(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return (1, T, heads, width) of a query (1, heads, T, width), keys and values (1, fewer heads, T, width), and None."""
    bounds, T = _bounds, query.shape[2]
    assert bounds is not None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        # T is no sequence's length but the most: where one ends is known on the device alone, as a CUDA graph needs it.
        flash = torch.ops.aten._flash_attention_forward
        return flash(q, k, v, bounds, bounds, T, T, dropout, True, False, scale=scaling)[0][None], None
    place = torch.arange(T, device=query.device)
    owner = torch.searchsorted(bounds, place, right=True)
    seen = (owner[:, None] == owner) & (place[:, None] >= place)
    kwargs.pop("is_causal", None)
    return sdpa_attention_forward(
        module, query, key, value, seen[None, None], dropout=dropout, scaling=scaling, is_causal=False, **kwargs
    )


AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)
AttentionInterface.register(WITHIN, _within_sequences)
