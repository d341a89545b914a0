"""Greedy generation in large batches: rows that are done leave the batch, the cache grows in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

LOOK_EVERY = 8  # tokens between two looks at what was generated: each waits for the GPU
ROOM = 256  # tokens by which a cache grows

Stopped = Callable[[list[list[int]]], list[bool]]


class GrowingLayer(DynamicLayer):
    """One layer's keys and values (B, H, T, D), in buffers with room for more tokens.

    transformers' own layer makes a tensor of a new size for every token, which copies the whole cache each time and, on a
    GPU, leaves holes of every size in its memory.
    """

    _buffers: tuple[Tensor, Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if start == 0:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._buffers = (key_states[:, :, :0], value_states[:, :, :0])
        if end > self._buffers[0].shape[-2]:
            self._buffers = (self._grown(self._buffers[0], start, end), self._grown(self._buffers[1], start, end))
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows."""
        end = self.get_seq_length()
        keys, values = self._buffers
        self._buffers = (keys[indices], values[indices])
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)

    @staticmethod
    def _grown(buffer: Tensor, start: int, end: int) -> Tensor:
        rows, heads, _, width = buffer.shape
        larger = buffer.new_empty((rows, heads, end + ROOM, width))
        larger[:, :, :start] = buffer[:, :, :start]
        return larger


@torch.no_grad()
def greedy(
    model: torch.nn.Module,
    ids_BT: Tensor,
    mask_BT: Tensor,
    max_new_tokens: int,
    end_ids: Iterable[int],
    stopped: Stopped,
    **forward: Any,
) -> list[list[int]]:
    """The generated ids of every row, at most `max_new_tokens`, padded prompts at the left.

    A row ends with the first of `end_ids`, which is kept, or where `stopped` says so of what the rows generated; it is asked
    once in LOOK_EVERY tokens. `forward`: more arguments of the model's forward.
    """
    ends = set(end_ids)
    alive, made = list(range(len(ids_BT))), [list[int]() for _ in range(len(ids_BT))]
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), max_new_tokens)], dim=1)
    used = ids_BT.shape[1]
    positions_BT = (mask_BT[:, :used].cumsum(1) - 1).clamp(min=0)
    new: list[Tensor] = []
    for done in range(1, max_new_tokens + 1):
        logits_BTV = model(
            input_ids=ids_BT,
            attention_mask=mask_BT[:, :used],
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            **forward,
        ).logits
        ids_BT, positions_BT, used = logits_BTV[:, -1].argmax(-1, keepdim=True), positions_BT[:, -1:] + 1, used + 1
        new.append(ids_BT)
        if done % LOOK_EVERY and done < max_new_tokens:
            continue
        for row, ids in zip(alive, torch.cat(new, dim=1).tolist(), strict=True):
            made[row] += ids
        new = []
        going = _going(made, alive, ends, stopped)
        alive = [alive[i] for i in going]
        if not alive:
            break
        if len(alive) < len(ids_BT):
            kept = torch.tensor(going, device=ids_BT.device)
            ids_BT, positions_BT, mask_BT = ids_BT[kept], positions_BT[kept], mask_BT[kept]
            cache.batch_select_indices(kept)
    return made


def _going(made: list[list[int]], alive: list[int], ends: set[int], stopped: Stopped) -> list[int]:
    """The places in `alive` of the rows that go on. A row that has met an end is cut behind it."""
    going = []
    for place, (row, stop) in enumerate(zip(alive, stopped([made[row] for row in alive]), strict=True)):
        fresh = range(max(0, len(made[row]) - LOOK_EVERY), len(made[row]))
        end = next((i for i in fresh if made[row][i] in ends), None)
        if end is not None:
            made[row] = made[row][: end + 1]
        elif not stop:
            going.append(place)
    return going
