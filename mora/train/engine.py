"""What the loop needs of an optimizer: backward, step, and a state to save. Here for one process, in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mora.config.schema import Train
from mora.data.batches import IGNORE, Batch
from mora.methods import trainable

from .cuda_graph import GraphedBackward
from .fused_loss import linear_cross_entropy, plain_head


class TorchEngine:
    """A model, its AdamW, and one precision policy: weights, compute and gradients in `dtype`, fp32 masters of what trains.

    It is the policy of DeepSpeed's bf16 mode: the optimizer updates the masters, gradients are summed over micro batches and
    clipped in fp32, and the model computes with the masters rounded once. In fp32 a parameter is its own master.
    """

    def __init__(self, model: nn.Module, train: Train, dtype: torch.dtype, cuda_graphs: bool = False):
        self.model = model
        self.parameters = trainable(model)
        self.device = next(model.parameters()).device
        self.masters = {name: _with_master(p, dtype) for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            [{"params": list(self.masters.values())}],  # a group may be empty: method none trains nothing
            lr=0.0,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_eps,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self._graphed = cuda_graphs and self.device.type == "cuda"
        self._backward = GraphedBackward(self._eager, self.masters.values()) if self._graphed else self._eager

    def backward(self, batch: Batch, loss_tokens: int) -> Tensor:
        """Adds the gradient of (sum of token losses / loss_tokens). Returns that loss, detached, without a host sync."""
        return self._backward(batch.to(self.device), torch.tensor(float(loss_tokens), device=self.device))

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
        """Clips, updates, clears the gradients. Returns the norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.clip_grad_norm_(self.masters.values(), max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._graphed)
        self._round_masters()
        return norm

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Within, what trains holds its masters: to save or merge them unrounded. The model does not compute then."""
        rounded = [(p, p.data) for p, _ in self._pairs()]
        for p, master in self._pairs():
            p.data = master.data
        try:
            yield
        finally:
            for p, data in rounded:
                p.data = data

    def state_dict(self) -> dict[str, Any]:
        weights = {name: p.detach() for name, p in self.masters.items()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, p in self.masters.items():
            p.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._round_masters()

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(parameter, master) where they are two."""
        return [(p, self.masters[name]) for name, p in self.parameters.items() if p is not self.masters[name]]

    @torch.no_grad()
    def _round_masters(self) -> None:
        if pairs := self._pairs():
            parameters, masters = zip(*pairs, strict=True)
            torch._foreach_copy_(parameters, masters)


def _with_master(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    """The parameter's fp32 master, made of its value before it is rounded to `dtype`; in fp32 the parameter itself."""
    if dtype == torch.float32:
        return parameter
    master = nn.Parameter(parameter.detach().float().clone())
    parameter.data = parameter.data.to(dtype)
    return master


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of every label in nats, fp32, shape (B, T - 1), 0 where there is no label."""
    head = plain_head(model)
    if head is not None:
        trunk, weight = head
        hidden = trunk(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).last_hidden_state[
            :, :-1
        ]
        labels = batch.labels[:, 1:]
        return linear_cross_entropy(hidden.flatten(0, 1), weight, labels.flatten(), IGNORE).view(labels.shape)
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    labels = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)  # the labels are shifted, not the large logits
    flat = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(labels.shape)[:, :-1]
