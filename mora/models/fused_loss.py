"""Cross-entropy from hidden states. Head and loss are computed for a chunk of tokens at a time, never for all logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mora.adapter import kernels

CHUNK_BYTES = 256 * 2**20  # of fp32 logits: those of 2048 tokens with LLaMA-2's vocabulary


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Return F.cross_entropy(hidden @ weight.T, labels, reduction="none"), in nats, fp32, with gradients.

    Products are computed in hidden's dtype, softmax and sums in fp32. At most CHUNK_BYTES of logits exist at a time. If the
    weight is frozen, the gradient is computed along with the loss, and what is kept has the size of hidden; if it trains,
    logits are computed again in the backward pass.

    Args:
        hidden: (N, H).
        weight: (V, H).
        labels: (N,), int64.
        ignore_index: A label whose loss is 0.
    """
    if weight.requires_grad and torch.is_grad_enabled():
        return _TrainedHead.apply(hidden, weight.to(hidden.dtype), labels, ignore_index)
    return _FrozenHead.apply(hidden, weight.to(hidden.dtype), labels, ignore_index, torch.is_grad_enabled())


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, wants_gradient: bool
    ) -> Tensor:
        losses = hidden.new_empty(labels.shape, dtype=torch.float32)
        gradient = torch.empty_like(hidden) if wants_gradient and hidden.requires_grad else None
        for part in parts(hidden, weight):
            logits = F.linear(hidden[part], weight)
            losses[part], residual = _losses_and_residual(logits, labels[part], ignore_index, gradient is not None)
            if gradient is not None:
                torch.mm(residual, weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        if gradient is None:
            return None, None, None, None, None
        return (gradient * grad_losses.unsqueeze(1)).to(gradient.dtype), None, None, None, None


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        losses = hidden.new_empty(labels.shape, dtype=torch.float32)
        for part in parts(hidden, weight):
            logits = F.linear(hidden[part], weight)
            losses[part], _ = _losses_and_residual(logits, labels[part], ignore_index, False)
        ctx.save_for_backward(hidden, weight, labels)
        ctx.ignore_index = ignore_index
        return losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for part in parts(hidden, weight):
            logits = F.linear(hidden[part], weight)
            _, residual = _losses_and_residual(logits, labels[part], ctx.ignore_index, True)
            torch.mm(residual, weight, out=grad_hidden[part])
            scaled = (hidden[part] * grad_losses[part].unsqueeze(1)).to(hidden.dtype)
            grad_weight += residual.T @ scaled
        return (grad_hidden * grad_losses.unsqueeze(1)).to(hidden.dtype), grad_weight.to(weight.dtype), None, None


def parts(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Yield slices of the rows of hidden (N, H), each with at most CHUNK_BYTES of logits, but at least one row."""
    size = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    for start in range(0, len(hidden), size):
        yield slice(start, start + size)


def groups(lengths: list[int], weight: Tensor) -> Iterator[slice]:
    """Yield slices of rows with these numbers of tokens, each with at most CHUNK_BYTES of logits, but at least one row."""
    max_tokens, start, tokens = CHUNK_BYTES // (4 * weight.shape[0]), 0, 0
    for i, length in enumerate(lengths):
        if i > start and tokens + length > max_tokens:
            yield slice(start, i)
            start, tokens = i, 0
        tokens += length
    yield slice(start, len(lengths))


def _losses_and_residual(logits: Tensor, labels: Tensor, ignore_index: int, residual: bool) -> tuple[Tensor, Tensor]:
    """Return the losses of the rows of logits (N, V) and, with `residual`, their softmax less 1 at the label.

    The latter is in logits' dtype. Both are zero for rows without a label. On a GPU one Triton kernel computes both, in the
    memory of the logits.
    """
    if logits.dtype != torch.float64 and kernels.on_triton(logits):
        from .cross_entropy_kernel import cross_entropy_

        return cross_entropy_(logits, labels, ignore_index, residual), logits
    logits_fp32 = logits.float()
    known = (labels != ignore_index).unsqueeze(1)
    target = labels.unsqueeze(1).where(known, 0)
    log_sum = logits_fp32.logsumexp(1, keepdim=True)
    losses = ((log_sum - logits_fp32.gather(1, target)) * known).squeeze(1)
    if residual:
        logits_fp32.sub_(log_sum).exp_().scatter_add_(1, target, -torch.ones_like(log_sum)).mul_(known)
        logits = logits_fp32.to(logits.dtype)
    return losses, logits
