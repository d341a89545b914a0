"""What the loop needs of an optimizer: backward, step, and a state to save. Here for one process, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mora.config.schema import Train
from mora.data.batches import IGNORE, Batch
from mora.methods import trainable

from .cuda_graph import GraphedBackward


class TorchEngine:
    """A model, its AdamW, and one precision policy: compute in `compute_dtype` by autocast, fp32 masters of what trains."""

    def __init__(self, model: nn.Module, train: Train, compute_dtype: torch.dtype, cuda_graphs: bool = False):
        self.model = model
        self.parameters = trainable(model)
        self.device = next(model.parameters()).device
        self.compute_dtype = compute_dtype
        self.optimizer = torch.optim.AdamW(
            [{"params": list(self.parameters.values())}],  # a group may be empty: method none trains nothing
            lr=0.0,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_eps,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self._graphed = cuda_graphs and self.device.type == "cuda"
        self._backward = GraphedBackward(self._eager, self.parameters.values()) if self._graphed else self._eager

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
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._graphed)
        return norm

    def state_dict(self) -> dict[str, Any]:
        weights = {name: p.detach() for name, p in self.parameters.items()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of every label in nats, fp32, shape (B, T - 1), 0 where there is no label."""
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[:, :-1]
    labels = batch.labels[:, 1:]
    flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(labels.shape)
