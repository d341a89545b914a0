"""Decoding steps of fixed shape, so that a step can be a CUDA graph: a small model is limited by kernel launches."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

WARM_UP = 2  # steps on another stream before a capture


def best(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids of the largest logits and whether each row has a NaN, both (B, 1). To argmax a NaN is the largest."""
    ids_B1 = logits_BV.argmax(-1, keepdim=True)
    return ids_B1, logits_BV.gather(-1, ids_B1).isnan()


class FixedSteps:
    """Greedy steps of one batch over a cache with room for them in its buffers. All state is on the device, and in place.

    The attention reads the whole buffers through a mask (B, 1, 1, L). `ids`, (B, 1), are the newest tokens, whose keys the
    cache does not hold yet; `positions` are their positions; `nan` marks the rows that had a NaN among their logits.
    Without `capture`, or if a capture fails, the same steps run without a graph.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        cache: Cache,
        ids_B1: Tensor,
        positions_B1: Tensor,
        mask_BT: Tensor,
        max_tokens: int,
        capture: bool,
        forward: dict[str, Any],
    ):
        layer: Any = cache.layers[0]
        used, rows = layer.get_seq_length(), len(ids_B1)
        self._model, self._cache, self._forward = model, cache, forward
        self.ids, self.positions = ids_B1.clone(), positions_B1.clone()
        self.nan = torch.zeros_like(ids_B1, dtype=torch.bool)
        self._at = torch.full((1,), used, device=ids_B1.device)
        self._slot = torch.zeros_like(self._at)
        self._made = ids_B1.new_zeros(rows, max_tokens + WARM_UP)
        self._seen = torch.zeros((rows, 1, 1, layer.length), dtype=torch.bool, device=ids_B1.device)
        self._seen[:, 0, 0, :used] = mask_BT[:, :used].bool()
        self._graph = self._captured() if capture else None
        self.failed = capture and self._graph is None

    def tokens(self, n: int) -> Tensor:
        """Return the next n tokens of every row, (B, n)."""
        self._slot.zero_()
        self._write_at(self._at)
        for _ in range(n):
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        self._write_at(None)
        for layer in self._cache.layers:
            layer.advance(n)  # type: ignore[attr-defined]
        return self._made[:, :n]

    def _step(self) -> None:
        self._seen.index_fill_(3, self._at, True)
        logits_BTV = self._model(
            input_ids=self.ids,
            attention_mask=self._seen,
            position_ids=self.positions,
            past_key_values=self._cache,
            use_cache=True,
            **self._forward,
        ).logits
        ids_B1, nan_B1 = best(logits_BTV[:, -1])
        self.ids.copy_(ids_B1)
        self.nan |= nan_B1
        self._made.index_copy_(1, self._slot, self.ids)
        for counter in (self._at, self._slot, self.positions):
            counter += 1

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """Capture one step as a graph; return None, with a warning, if the model cannot be captured."""
        state = (self.ids, self.positions, self.nan, self._at, self._slot, self._seen)
        before = [tensor.clone() for tensor in state]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        self._write_at(self._at)
        try:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                self._step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the model does what a capture forbids, such as a copy to the host
            reason = (str(error).splitlines() or ["no reason given"])[0]
            warnings.warn(f"decoding without CUDA graphs: {reason}", stacklevel=2)
            return None
        finally:
            self._write_at(None)
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        return graph

    def _write_at(self, at: Tensor | None) -> None:
        for layer in self._cache.layers:
            layer.at = at  # type: ignore[attr-defined]
