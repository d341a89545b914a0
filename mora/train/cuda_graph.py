"""Forward and backward pass of a batch shape as one CUDA graph, since a small model is limited by kernel launches."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mora.data.batches import Batch

SEEN_BEFORE_CAPTURE = 3  # a shape gets a graph when it comes for the third time: a rare one is not worth it
MOST_GRAPHS = 8
WARM_UP = 3  # passes on the capture's stream before the capture, which torch requires

Backward = Callable[[Batch, Tensor], Tensor]


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss_tokens: Tensor
    loss: Tensor


class GraphedBackward:
    """Calls `backward(batch, loss_tokens)`, or replays its graph if a batch of that shape has been captured.

    Every parameter has a `.grad` from now on, to which gradients are added. It must be zeroed in place, never dropped.
    Dropout follows torch.manual_seed, as it does without a graph.
    """

    def __init__(self, backward: Backward, parameters: Iterable[nn.Parameter]):
        self._backward = backward
        self._parameters = list(parameters)
        for p in self._parameters:
            p.grad = torch.zeros_like(p)
        self._seen: Counter[torch.Size] = Counter()
        self._captured: dict[torch.Size, _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, loss_tokens: Tensor) -> Tensor:
        if batch.position_ids is not None and batch.bounds is None:
            return self._backward(batch, loss_tokens)  # packed: transformers reads the positions on the host
        shape = batch.input_ids.shape
        self._seen[shape] += 1
        if shape not in self._captured:
            if self._seen[shape] < SEEN_BEFORE_CAPTURE or len(self._captured) == MOST_GRAPHS:
                return self._backward(batch, loss_tokens)
            self._captured[shape] = self._capture(batch, loss_tokens)
        captured = self._captured[shape]
        for ours, given in zip(vars(captured.batch).values(), vars(batch).values(), strict=True):
            if ours is not None:
                ours.copy_(given)
        captured.loss_tokens.copy_(loss_tokens)
        captured.graph.replay()
        return captured.loss.clone()

    def _capture(self, batch: Batch, loss_tokens: Tensor) -> _Captured:
        inputs = Batch(*(None if x is None else x.clone() for x in vars(batch).values()))  # type: ignore[arg-type]
        tokens = loss_tokens.clone()
        gradients = [p.grad.clone() for p in self._parameters if p.grad is not None]
        torch.cuda.empty_cache()  # cached blocks of the current stream are of no use to the other
        stream = _stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]), torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._backward(inputs, tokens)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            loss = self._backward(inputs, tokens)
        for p, gradient in zip(self._parameters, gradients, strict=True):
            assert p.grad is not None
            p.grad.copy_(gradient)
        return _Captured(graph, inputs, tokens, loss)


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    """Return the one stream on which all graphs of a GPU are captured: torch keeps 64 MiB per stream for cuBLAS."""
    return torch.cuda.Stream(device)
