"""Greedy generation in large batches. Finished rows leave the batch, and the cache grows in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from mora.models.structure import takes_long_masks

from .fixed_steps import WARM_UP, FixedSteps, best

CHECK_EVERY = 8  # tokens between two checks of what was generated; each waits for the GPU
ROOM = 256  # tokens by which a cache grows

Stopped = Callable[[list[list[int]]], list[bool]]


class NanLogits(RuntimeError):
    """The model gave NaN for a row of the batch."""

    def __init__(self, row: int):
        super().__init__(f"row {row}")
        self.row = row


class GrowingLayer(DynamicLayer):
    """One layer's keys and values (B, H, T, D), in buffers with room for more tokens.

    transformers' own layer makes a larger tensor for every token, which copies the whole cache each time and, on a GPU,
    leaves gaps of every size in its memory. While `at`, a tensor of shape (1,), is set, as in the steps of FixedSteps, each
    token is written at that place and the whole buffers are returned.
    """

    _buffers: tuple[Tensor, Tensor]
    at: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.at is not None:
            for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
                buffer.index_copy_(2, self.at, new)
            return self._buffers
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

    @property
    def length(self) -> int:
        """The number of tokens that the buffers can hold."""
        return self._buffers[0].shape[-2]

    def advance(self, n: int) -> None:
        """Mark n more tokens of the buffers as written."""
        end = self.get_seq_length() + n
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)

    def reserve(self, n: int) -> None:
        """Make room for n more tokens."""
        end = self.get_seq_length()
        if end + n > self.length:
            self._buffers = (self._grown(self._buffers[0], end, end), self._grown(self._buffers[1], end, end))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        end = self.get_seq_length()
        keys, values = self._buffers
        self._buffers = (keys[indices], values[indices])
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)

    @staticmethod
    def _grown(buffer: Tensor, start: int, end: int) -> Tensor:
        rows, heads, _, width = buffer.shape
        larger = buffer.new_zeros((rows, heads, end + ROOM, width))
        larger[:, :, :start] = buffer[:, :, :start]
        return larger


class _Batch:
    """The rows that are being generated, in the form that the model needs for the next token."""

    def __init__(
        self, model: torch.nn.Module, ids_BT: Tensor, mask_BT: Tensor, max_tokens: int, forward: dict[str, Any]
    ):
        self._model, self._forward = model, forward
        self._cache = Cache(layer_class_to_replicate=GrowingLayer)
        self._mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), max_tokens)], dim=1)
        self._used = ids_BT.shape[1]
        self._ids_BT, self._positions_BT = ids_BT, (mask_BT.cumsum(1) - 1).clamp(min=0)
        self._nan_B1 = torch.zeros_like(ids_BT[:, :1], dtype=torch.bool)

    def nan(self) -> list[bool]:
        """Return, for every row, whether any of its logits was NaN. This waits for the GPU."""
        return self._nan_B1[:, 0].tolist()

    def tokens(self, n: int) -> Tensor:
        """Return the next n tokens of every row, (B, n)."""
        return torch.cat([self._token() for _ in range(n)], dim=1)

    def _token(self) -> Tensor:
        logits_BTV = self._model(
            input_ids=self._ids_BT,
            attention_mask=self._mask_BT[:, : self._used],
            position_ids=self._positions_BT,
            past_key_values=self._cache,
            use_cache=True,
            **self._forward,
        ).logits
        self._ids_BT, nan_B1 = best(logits_BTV[:, -1])
        self._nan_B1 |= nan_B1
        self._positions_BT = self._positions_BT[:, -1:] + 1
        self._used += 1
        return self._ids_BT

    def keep(self, places: list[int]) -> None:
        """Keep only these rows, in this order."""
        if len(places) == len(self._ids_BT):
            return
        kept = torch.tensor(places, device=self._ids_BT.device)
        self._ids_BT, self._positions_BT = self._ids_BT[kept], self._positions_BT[kept]
        self._mask_BT, self._nan_B1 = self._mask_BT[kept], self._nan_B1[kept]
        self._cache.batch_select_indices(kept)


class _FixedBatch(_Batch):
    """A batch that generates with FixedSteps.

    Finished rows stay until they are half of the batch, since a batch of another size, like a cache that grows, needs a new
    graph.
    """

    _steps: FixedSteps | None = None
    _places: list[int] | None = None  # places of the rows that are not finished; None: all

    def nan(self) -> list[bool]:
        is_nan = super().nan()
        return is_nan if self._places is None else [is_nan[place] for place in self._places]

    def tokens(self, n: int) -> Tensor:
        if not self._cache.layers:
            first = self._token()
            return torch.cat([first, self.tokens(n - 1)], dim=1) if n > 1 else first
        layers: list[Any] = self._cache.layers
        if layers[0].length < layers[0].get_seq_length() + n:
            self._steps = None
        if self._steps is None:
            for layer in layers:
                layer.reserve(CHECK_EVERY + WARM_UP)
            self._steps = FixedSteps(
                self._model,
                self._cache,
                self._ids_BT,
                self._positions_BT,
                self._mask_BT,
                CHECK_EVERY,
                self._captures(),
                self._forward,
            )
            if self._steps.failed:
                _uncaptured.add(type(self._model))
        made = self._steps.tokens(n)
        self._used += n
        self._nan_B1 |= self._steps.nan
        self._ids_BT, self._positions_BT = self._steps.ids, self._steps.positions
        return made if self._places is None else made[torch.tensor(self._places, device=made.device)]

    def keep(self, places: list[int]) -> None:
        wanted = places if self._places is None else [self._places[place] for place in places]
        self._places = wanted
        if 2 * len(wanted) <= len(self._ids_BT):
            self._steps, self._places = None, None
            super().keep(wanted)

    def _captures(self) -> bool:
        return self._ids_BT.device.type == "cuda" and type(self._model) not in _uncaptured


_uncaptured: set[type] = set()  # classes of models for which a capture failed


def fixed_steps_suit(model: Any) -> bool:
    """Return whether the model is on a GPU and accepts a four-dimensional mask."""
    return next(model.parameters()).device.type == "cuda" and takes_long_masks(model)


@torch.no_grad()
def greedy(
    model: torch.nn.Module,
    ids_BT: Tensor,
    mask_BT: Tensor,
    max_new_tokens: int,
    end_ids: Iterable[int],
    stopped: Stopped,
    fixed: bool = False,
    **forward: Any,
) -> list[list[int]]:
    """Generate greedily and return the new ids of every row.

    Args:
        model: The language model.
        ids_BT: Prompts, padded at the left.
        mask_BT: Their attention mask.
        max_new_tokens: The most tokens generated for a row.
        end_ids: A row ends with the first of these ids, which is kept.
        stopped: Returns, for the ids of each row, whether it ends; called once in CHECK_EVERY tokens.
        fixed: Take steps of fixed shape, which suits a GPU (`fixed_steps_suit`).
        forward: More arguments of the model's forward.

    Raises:
        NanLogits: A logit is NaN, which is checked once in CHECK_EVERY tokens.
    """
    ends = set(end_ids)
    alive, generated = list(range(len(ids_BT))), [list[int]() for _ in range(len(ids_BT))]
    batch = (_FixedBatch if fixed else _Batch)(model, ids_BT, mask_BT, max_new_tokens, forward)
    for done in range(0, max_new_tokens, CHECK_EVERY):
        new = batch.tokens(min(CHECK_EVERY, max_new_tokens - done))
        for row, ids, nan in zip(alive, new.tolist(), batch.nan(), strict=True):
            if nan:
                raise NanLogits(row)
            generated[row] += ids
        unfinished = _unfinished(generated, alive, ends, stopped)
        alive = [alive[i] for i in unfinished]
        if not alive:
            break
        batch.keep(unfinished)
    return generated


def _unfinished(generated: list[list[int]], alive: list[int], ends: set[int], stopped: Stopped) -> list[int]:
    """Return the places in `alive` of the rows that continue. A row with an end id is cut after that id."""
    unfinished = []
    for place, (row, stop) in enumerate(zip(alive, stopped([generated[row] for row in alive]), strict=True)):
        fresh = range(max(0, len(generated[row]) - CHECK_EVERY), len(generated[row]))
        end = next((i for i in fresh if generated[row][i] in ends), None)
        if end is not None:
            generated[row] = generated[row][: end + 1]
        elif not stop:
            unfinished.append(place)
    return unfinished
