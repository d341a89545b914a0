"""The protocols of data and engines that the loop uses. They are the same for plain torch and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from mora.data.batches import Batch
from mora.restarts.restart import RestartEngine


class StepBatches(Protocol):
    """The data: the micro batches of a step, and the number of tokens with a loss in the whole step."""

    def micro_batches(self, step: int) -> Iterator[Batch]: ...

    def loss_tokens(self, step: int) -> int: ...


class Engine(RestartEngine, Protocol):
    """A model with its optimizer: what trains it, beside what a restart needs.

    All ranks must call every method; `mora.train.engine.TorchEngine` documents them.
    """

    def backward(self, batch: Batch, loss_tokens: int) -> Tensor: ...

    def step(self, lr: float, max_grad_norm: float) -> Tensor: ...

    def materialized(self) -> AbstractContextManager[None]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
