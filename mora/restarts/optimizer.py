"""What a restart reads and writes of a model and its torch optimizer, on one rank or more (data parallelism)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mora.ranks import broadcast


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate, `lr_scale` times the run's. `adapter`: a restart resets their moments."""

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    lr_scale: float = 1.0
    adapter: bool = False


class TorchState:
    """A model every rank holds whole, and a torch optimizer of its parameters themselves."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, adapter: Sequence[nn.Parameter]):
        self.model, self.optimizer = model, optimizer
        self.device = adapter[0].device
        self._adapter = set(adapter)

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter], write: bool = True) -> Iterator[None]:
        """Context manager: the parameters can be read whole. What rank 0 writes into them, all ranks have afterwards."""
        yield
        if write:
            for p in parameters:
                broadcast(p.data)

    def assign(self, parameter: nn.Parameter, value: Tensor, stale_master: bool = False) -> None:
        """Write a whole value, the same on every rank, into the parameter and its master.

        stale_master: the next update continues from the old master, as if nobody had refreshed it.
        """
        assert not stale_master, "a parameter that is its own master has no stale one"
        parameter.data.copy_(value)

    def master(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole value that the optimizer updates, or that of a parameter that does not train."""
        return parameter.detach()

    def optimizer_states(self, adapter: bool) -> list[dict[str, Tensor]]:
        """Return this process's moments and steps of adapters, or of everything else. May be written to."""
        return [state for p, state in self.optimizer.state.items() if (p in self._adapter) == adapter]

    def fp32_masters(self) -> AbstractContextManager[None]:
        """Context manager: parameters that train hold their masters, to be saved or merged unrounded.

        The model must not compute meanwhile. Afterwards they hold their own values again.
        """
        return nullcontext()

    def computation_changed(self) -> None:
        """Discard recordings of the forward pass, which no longer hold. Nothing is recorded here."""


@contextmanager
def exchanged(values: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Context manager: the parameters hold these values, and afterwards their own again."""
    before = [(p, p.data) for p in values]
    for p, value in values.items():
        p.data = value
    try:
        yield
    finally:
        for p, value in before:
            p.data = value
