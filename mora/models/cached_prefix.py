"""The keys and values of tokens with which many sequences begin, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class CachedPrefix:
    """The keys and values of tokens with which several sequences begin. The trunk computes them when first needed."""

    def __init__(self, trunk: nn.Module, ids: Sequence[int]):
        self._trunk, self._ids = trunk, list(ids)
        self._cache: Cache | None = None

    @property
    def length(self) -> int:
        return len(self._ids)

    @torch.no_grad()
    def continued(self, ids_BT: Tensor) -> Tensor:
        """Return the hidden states (B, T, H) of the tokens that follow, in rows that are padded at the right if unequal."""
        if self._cache is None:
            computed = DynamicCache()
            ids = torch.tensor([self._ids], device=ids_BT.device)
            self._trunk(input_ids=ids, past_key_values=computed, use_cache=True)
            self._cache = Cache(layers=[_PrefixLayer(layer) for layer in computed.layers])
        return self._trunk(input_ids=ids_BT, past_key_values=self._cache, use_cache=True).last_hidden_state


class _PrefixLayer(DynamicLayer):
    """The keys and values of one row, (1, heads, T, width), with which every row of a batch begins.

    Those of the tokens that follow are not kept, so they are in memory for one layer at a time, and the next batch finds the
    same prefix.
    """

    def __init__(self, computed: Any):
        super().__init__()
        self.lazy_initialization(computed.keys, computed.values)
        self.keys, self.values = computed.keys, computed.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the prefix and of what follows, (B, heads, T, width)."""
        rows = (len(key_states), -1, -1, -1)
        return (
            torch.cat([self.keys.expand(rows), key_states], dim=-2),
            torch.cat([self.values.expand(rows), value_states], dim=-2),
        )
