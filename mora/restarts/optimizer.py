"""A model and its torch optimizer as a restart sees them, on one rank or more (data parallelism)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mora.ranks import broadcast


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate, `lr_scale` times the run's. A restart resets the moments of an `adapter` group."""

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    lr_scale: float = 1.0
    adapter: bool = False


class TorchRestartEngine:
    """A model that every rank holds whole, with a torch optimizer that updates its parameters directly."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, adapter: Sequence[nn.Parameter]):
        self.model, self.optimizer = model, optimizer
        self.device = adapter[0].device
        self._adapter = set(adapter)

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter], write: bool = True) -> Iterator[None]:
        """Context manager: the parameters are whole. If `write`, all ranks afterwards have what rank 0 wrote into them."""
        yield
        if write:
            for p in parameters:
                broadcast(p.data)

    def assign(self, parameter: nn.Parameter, value: Tensor, stale_master: bool = False) -> None:
        """Write a whole value, which is the same on every rank, into the parameter and its master.

        With `stale_master` the next update begins from the old value of the master, as if it had not been refreshed.
        """
        assert not stale_master, "a parameter that is its own master has no stale one"
        parameter.data.copy_(value)

    def master(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole value that the optimizer updates, or a frozen parameter's own value."""
        return parameter.detach()

    def optimizer_states(self, adapter: bool) -> list[dict[str, Tensor]]:
        """Return this process's moments and steps, of the adapter or of all else. The caller may write to them."""
        return [state for p, state in self.optimizer.state.items() if (p in self._adapter) == adapter]

    def fp32_masters(self) -> AbstractContextManager[None]:
        """Context manager: trained parameters hold their masters, so that they are saved or merged unrounded.

        The model must not compute meanwhile.
        """
        return nullcontext()

    def computation_changed(self) -> None:
        """Discard recordings of the forward pass, since the model now computes another function. There are none here."""


@contextmanager
def exchanged(values: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Context manager: the parameters hold these values; afterwards they hold their own again."""
    before = [(p, p.data) for p in values]
    for p, value in values.items():
        p.data = value
    try:
        yield
    finally:
        for p, value in before:
            p.data = value
