"""Attention without a mask, for rows of one sequence each, and for a row of several that do not see each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# The names of our attention functions. transformers makes no mask for a name that it does not know.
WITHOUT_MASK, WITHIN = "sdpa_without_mask", "sdpa_within_sequences"
_bounds: Tensor | None = None  # those of the row that is being computed


@contextmanager
def without_mask(trunk: nn.Module) -> Iterator[None]:
    """Context manager: let attention work without a mask, on rows that are causal sequences without padding before the end.

    `mora.models.structure.needs_no_mask` says for which models this is right. Without it, transformers looks for packed
    sequences in the positions, for which on a GPU the host waits for the device in every pass. During a capture it may not
    wait, and makes a mask: attention then repeats keys and values, keeps the mask once per layer, and takes a slower kernel
    than FlashAttention.
    """
    with _by(trunk, WITHOUT_MASK):
        yield


@contextmanager
def within(trunk: nn.Module, bounds: Tensor) -> Iterator[None]:
    """Context manager: the trunk's inputs are one row (1, T) of sequences that do not see each other.

    Args:
        trunk: The trunk of a transformers model.
        bounds: int32 (N + 1,), on the model's device: 0, then the end of each sequence, then T for each entry that is left.
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
    """Return the output (1, T, heads, width), and None for the attention weights.

    The query is (1, heads, T, width); keys and values are (1, fewer heads, T, width).
    """
    bounds, T = _bounds, query.shape[2]
    assert bounds is not None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        # T is an upper bound of the sequences' lengths, which are known only on the device, as a CUDA graph requires.
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
