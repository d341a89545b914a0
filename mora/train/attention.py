"""Causal attention without the mask that transformers makes where it may not look at the positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

WITHOUT_MASK = "sdpa_without_mask"  # transformers makes no mask for a function that it does not know
AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)


@contextmanager
def without_mask(trunk: nn.Module) -> Iterator[None]:
    """Within, every row of a Llama's batch is one sequence, causal and without padding before its end.

    transformers looks for packed sequences in the positions: on a GPU the host waits for the device in every pass. Under
    capture, where it may not wait, it makes a mask, with which attention repeats keys and values, keeps the mask once a
    layer and takes a slower kernel than FlashAttention.
    """
    config: Any = trunk.config
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = WITHOUT_MASK
    try:
        yield
    finally:
        config._attn_implementation = before
