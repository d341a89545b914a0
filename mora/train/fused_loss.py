"""Cross-entropy from hidden states: the head and the loss a chunk of tokens at a time, so that no full logits exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

CHUNK_BYTES = 256 * 2**20  # of fp32 logits: 2048 tokens of LLaMA-2's vocabulary


def plain_head(model: nn.Module) -> tuple[nn.Module, Tensor] | None:
    """The model under the head and the head's frozen weight (V, H); None where logits are more than their product.

    So for architectures other than Llama, which may scale or cap their logits, and for a head that is adapted, trained,
    hooked, biased or tied to embeddings that train.
    """
    get_base = getattr(model, "get_base_model", None)
    causal = get_base() if get_base is not None else model
    if not isinstance(causal, PreTrainedModel) or causal.config.model_type != "llama":
        return None
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return None
    if head._forward_hooks or head._forward_pre_hooks or "forward" in head.__dict__:
        return None
    return causal.model, head.weight


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Losses of F.cross_entropy(hidden @ weight.T, labels, reduction="none"), in nats, fp32, and their gradient.

    hidden (N, H), weight (V, H) which gets no gradient, labels (N,) int64; a label `ignore_index` gives 0. Products are
    taken in hidden's dtype, softmax and sums in fp32. The gradient is computed with the loss, where one is asked for, so
    that logits live once, CHUNK_BYTES of them at a time; what is kept has the size of hidden.
    """
    return _LinearCrossEntropy.apply(hidden, weight.to(hidden.dtype), labels, ignore_index, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, wants_gradient: bool
    ) -> Tensor:
        losses = hidden.new_empty(labels.shape, dtype=torch.float32)
        gradient = torch.empty_like(hidden) if wants_gradient and hidden.requires_grad else None
        size = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            logits = F.linear(hidden[part], weight).float()
            known = (labels[part] != ignore_index).unsqueeze(1)
            target = labels[part].unsqueeze(1).where(known, 0)
            log_sum = logits.logsumexp(1, keepdim=True)
            losses[part] = ((log_sum - logits.gather(1, target)) * known).squeeze(1)
            if gradient is not None:  # softmax minus one at the target, in the memory of the logits
                logits.sub_(log_sum).exp_().scatter_add_(1, target, -torch.ones_like(log_sum)).mul_(known)
                torch.mm(logits.to(weight.dtype), weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        if gradient is None:
            return None, None, None, None, None
        return (gradient * grad_losses.unsqueeze(1)).to(gradient.dtype), None, None, None, None
