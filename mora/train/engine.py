"""The engine of the training loop (backward, step, state to save) in plain torch, for one or more ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mora.config.train_schema import Train
from mora.data.batches import Batch
from mora.methods import ParameterGroup, trainable
from mora.models.losses import token_losses
from mora.models.structure import can_be_captured
from mora.restarts.optimizer import TorchRestartEngine, exchanged

from .cuda_graph import GraphedBackward
from .distributed import rank, sum_gradients


class TorchEngine(TorchRestartEngine):
    """A model, its AdamW, and one precision policy: weights, compute and gradients in `dtype`, masters in fp32.

    The policy is that of DeepSpeed's bf16 mode. The optimizer updates the masters, fp32 copies of the trained parameters.
    Gradients are summed over micro batches and clipped in fp32, and the model computes with the masters, rounded once. In
    fp32 a parameter is its own master.

    Each process has the whole model, and gradients are summed over the processes before the update (data parallelism).
    `groups` are the trainable parameters by learning rate; by default all of them are in one group.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Train,
        dtype: torch.dtype,
        cuda_graphs: bool = False,
        groups: Sequence[ParameterGroup] | None = None,
    ):
        self.model = model
        self.groups = groups or [ParameterGroup(trainable(model))]
        self.parameters = {name: p for group in self.groups for name, p in group.parameters.items()}
        self.device = next(model.parameters()).device
        self._frozen = round_frozen(model, dtype)
        self.masters = {name: _with_master(p, dtype) for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            # A group may be empty: method none trains nothing.
            [{"params": [self.masters[name] for name in group.parameters]} for group in self.groups],
            lr=0.0,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_eps,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self._masters_of = {p: self.masters[name] for name, p in self.parameters.items()}
        self._stale: dict[nn.Parameter, Tensor] = {}
        self._graphed = cuda_graphs and self.device.type == "cuda" and can_be_captured(model)
        self.computation_changed()

    def backward(self, batch: Batch, loss_tokens: int) -> Tensor:
        """Add the gradient of (sum of token losses / loss_tokens), and return that loss, detached. There is no host sync."""
        return self._backward(batch.to(self.device), torch.full((), float(loss_tokens), device=self.device))

    def _eager(self, batch: Batch, loss_tokens: Tensor) -> Tensor:
        loss = token_losses(self.model, batch).sum() / loss_tokens
        loss.backward()
        for p, master in self._pairs():
            assert p.grad is not None
            if master.grad is None:
                master.grad = p.grad.float()
            else:
                master.grad += p.grad
            p.grad = None
        return loss.detach()

    def step(self, lr: float, max_grad_norm: float) -> Tensor:
        """Clip the gradients, update the parameters and clear the gradients; return the norm before clipping."""
        for group, ours in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = lr * ours.lr_scale
        sum_gradients(self.masters.values())
        norm = nn.utils.clip_grad_norm_(self.masters.values(), max_grad_norm)
        for master, value in self._stale.items():
            master.data.copy_(value)
        self._stale.clear()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._graphed)
        self._round_masters()
        return norm

    def computation_changed(self) -> None:
        """Discard recorded CUDA graphs, since the model now computes another function."""
        self._backward = GraphedBackward(self._eager, self.masters.values()) if self._graphed else self._eager

    def assign(self, parameter: nn.Parameter, value: Tensor, stale_master: bool = False) -> None:
        """Write a whole value, which is the same on every rank, into the parameter and its master.

        With `stale_master` the next update begins from the old value of the master, as if it had not been refreshed.
        """
        master = self._masters_of.get(parameter)
        if master is not None:
            if stale_master:
                self._stale[master] = master.detach().clone()
            master.data.copy_(value)
        parameter.data.copy_(value)

    def master(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole fp32 value that the optimizer updates, or a frozen parameter's own value."""
        return self._masters_of.get(parameter, parameter).detach()

    def optimizer_states(self, adapter: bool) -> list[dict[str, Tensor]]:
        """Return this process's moments and steps, of the adapter or of all else. The caller may write to them."""
        masters = [self.masters[name] for group in self.groups if group.adapter == adapter for name in group.parameters]
        return [self.optimizer.state[m] for m in masters if m in self.optimizer.state]

    def fp32_masters(self) -> AbstractContextManager[None]:
        """Context manager: trained parameters hold their masters, so that they are saved or merged unrounded.

        The model must not compute meanwhile.
        """
        return exchanged({p: master.data for p, master in self._pairs()} | self._frozen)

    def materialized(self) -> AbstractContextManager[None]:
        """Context manager: this process holds the whole model, unrounded.

        It is for saving, and for evaluation inside `methods.merged`.
        """
        return self.fp32_masters()

    def state_dict(self) -> dict[str, Any]:
        """Return masters and optimizer state by name, which are the same for every engine and any number of ranks.

        Only rank 0 returns them, copied to the CPU; copies of every rank would not fit into a machine's memory.
        """
        if rank() > 0:
            return {"weights": {}, "optimizer": {}}
        states = {name: self.optimizer.state[m] for name, m in self.masters.items() if m in self.optimizer.state}
        return {
            "weights": {name: _copy(self._stale.get(m, m)) for name, m in self.masters.items()},
            "optimizer": {name: {key: _copy(value) for key, value in state.items()} for name, state in states.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, m in self.masters.items():
            m.copy_(state["weights"][name])
            moments = state["optimizer"].get(name, {})
            self.optimizer.state[m] = {key: value.to(self.device, copy=True) for key, value in moments.items()}
        self._round_masters()

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Return the pairs (parameter, master) of those parameters that have a separate master."""
        return [(p, self.masters[name]) for name, p in self.parameters.items() if p is not self.masters[name]]

    @torch.no_grad()
    def _round_masters(self) -> None:
        if pairs := self._pairs():
            parameters, masters = zip(*pairs, strict=True)
            torch._foreach_copy_(parameters, masters)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def round_frozen(model: nn.Module, dtype: torch.dtype) -> dict[nn.Parameter, Tensor]:
    """Cast the parameters that are not trained to the dtype of the computation.

    Returns:
        The values before rounding, by parameter. There are some if A is frozen, since PEFT makes it in fp32.
    """
    frozen = {p: p.data for p in model.parameters() if not p.requires_grad and p.dtype != dtype}
    for p in frozen:
        p.data = p.data.to(dtype)
    return frozen


def _with_master(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    """Return the parameter's fp32 master, taken before it is rounded to `dtype`; in fp32, the parameter itself."""
    if dtype == torch.float32:
        return parameter
    master = nn.Parameter(parameter.detach().float().clone())
    parameter.data = parameter.data.to(dtype)
    return master
