"""The protocols of data and engines that the loop and the restarts use. They are the same for plain torch and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mora.data.batches import Batch


class Steps(Protocol):
    """The data. `step` yields the micro batches of a step; `loss_tokens` counts the tokens with a loss in the whole step."""

    def step(self, step: int) -> Iterator[Batch]: ...

    def loss_tokens(self, step: int) -> int: ...


class Engine(Protocol):
    """A model with its optimizer. All ranks must call every method; `mora.train.engine.TorchEngine` documents them."""

    model: nn.Module
    device: torch.device

    def backward(self, batch: Batch, loss_tokens: int) -> Tensor: ...

    def step(self, lr: float, max_grad_norm: float) -> Tensor: ...

    def computation_changed(self) -> None: ...

    def gathered(self, parameters: Sequence[nn.Parameter], write: bool = True) -> AbstractContextManager[None]: ...

    def assign(self, parameter: nn.Parameter, value: Tensor, stale_master: bool = False) -> None: ...

    def fp32_masters(self) -> AbstractContextManager[None]: ...

    def materialized(self) -> AbstractContextManager[None]: ...

    def master(self, parameter: nn.Parameter) -> Tensor: ...

    def optimizer_states(self, adapter: bool) -> list[dict[str, Tensor]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
