"""What the loop needs of an optimizer: backward, step, and a state to save. Here in plain torch, on one rank or more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mora.config.schema import Train
from mora.data.batches import IGNORE, Batch
from mora.methods import Group, trainable

from .cuda_graph import GraphedBackward
from .distributed import broadcast, sum_gradients


class TorchEngine:
    """A model, its AdamW, and one precision policy: compute in `compute_dtype` by autocast, fp32 masters of what trains.

    With several processes each has the whole model, and the gradients are summed before the update (data parallelism).
    `groups`: the trainable parameters by learning rate; without, all of them in one.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Train,
        compute_dtype: torch.dtype,
        cuda_graphs: bool = False,
        groups: Sequence[Group] | None = None,
    ):
        self.model = model
        self.groups = groups or [Group(trainable(model))]
        self.parameters = {name: p for group in self.groups for name, p in group.parameters.items()}
        self.device = next(model.parameters()).device
        self.compute_dtype = compute_dtype
        self.optimizer = torch.optim.AdamW(
            [{"params": list(g.parameters.values())} for g in self.groups],  # may be empty: method none trains nothing
            lr=0.0,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_eps,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self._stale: dict[nn.Parameter, Tensor] = {}
        self._graphed = cuda_graphs and self.device.type == "cuda"
        self.computation_changed()

    def autocast(self) -> torch.autocast:
        """No cache of cast weights: each is used once a pass, and a CUDA graph must not keep one from outside."""
        enabled = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, self.compute_dtype, enabled=enabled, cache_enabled=False)

    def backward(self, batch: Batch, loss_tokens: int) -> Tensor:
        """Adds the gradient of (sum of token losses / loss_tokens). Returns that loss, detached, without a host sync."""
        return self._backward(batch.to(self.device), torch.tensor(float(loss_tokens), device=self.device))

    def _eager(self, batch: Batch, loss_tokens: Tensor) -> Tensor:
        with self.autocast():
            loss = token_losses(self.model, batch).sum() / loss_tokens
        loss.backward()
        return loss.detach()

    def step(self, lr: float, max_grad_norm: float) -> Tensor:
        """Clips, updates, clears the gradients. Returns the norm before clipping."""
        for group, ours in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = lr * ours.lr_scale
        sum_gradients(self.parameters.values())
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), max_grad_norm)
        for p, value in self._stale.items():
            p.data.copy_(value)
        self._stale.clear()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._graphed)
        return norm

    def computation_changed(self) -> None:
        """What the model computes is another function now: what was recorded of it is forgotten."""
        self._backward = GraphedBackward(self._eager, self.parameters.values()) if self._graphed else self._eager

    @contextmanager
    def whole(self, parameters: Sequence[nn.Parameter], write: bool = True) -> Iterator[None]:
        """Within, the parameters can be read whole. What rank 0 has written into them, all ranks have afterwards."""
        yield
        if write:
            for p in parameters:
                broadcast(p.data)

    def assign(self, parameter: nn.Parameter, value: Tensor, stale_master: bool = False) -> None:
        """Writes a whole value, the same on every rank, into the parameter and into what the optimizer updates.

        stale_master: the optimizer goes on from the old value, as where it keeps a copy that nobody refreshed.
        """
        if stale_master:
            self._stale[parameter] = parameter.detach().clone()
        parameter.data.copy_(value)

    def master(self, parameter: nn.Parameter) -> Tensor:
        """The whole fp32 value that the optimizer updates: here the parameter itself."""
        return parameter.detach()

    def optimizer_states(self, adapter: bool) -> list[dict[str, Tensor]]:
        """What this process holds of the moments and steps of adapters, or of everything else. May be written to."""
        parameters = [p for group in self.groups if group.adapter == adapter for p in group.parameters.values()]
        return [self.optimizer.state[p] for p in parameters if p in self.optimizer.state]

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer state of what trains, by name: the same from every engine and any number of ranks."""
        states = {name: self.optimizer.state[p] for name, p in self.parameters.items() if p in self.optimizer.state}
        return {"weights": {name: p.detach() for name, p in self.parameters.items()}, "optimizer": states}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, p in self.parameters.items():
            p.copy_(state["weights"][name])
            moments = state["optimizer"].get(name, {})
            self.optimizer.state[p] = {key: value.to(self.device, copy=True) for key, value in moments.items()}


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of every label in nats, fp32, shape (B, T - 1), 0 where there is no label."""
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]
    labels = batch.labels[:, 1:]
    flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(labels.shape)
