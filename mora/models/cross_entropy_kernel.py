"""Cross-entropy of a chunk of logits and its gradient in one Triton kernel, with two reads and one write of the logits.

Importing this file imports Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits of a row that are processed at a time


def cross_entropy_(logits: Tensor, labels: Tensor, ignore_index: int, residual: bool) -> Tensor:
    """Return the losses in fp32, (N,), for logits (N, V) with contiguous rows, and labels (N,).

    With `residual` the logits are overwritten: by their softmax, less 1 at the label, or by zeros if the label is
    `ignore_index`.
    """
    rows, vocabulary = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        _cross_entropy[(rows,)](
            logits, labels, losses, logits.stride(0), ignore_index,
            VOCABULARY=vocabulary, RESIDUAL=residual, BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)), num_warps=8,
        )  # fmt: skip
    return losses


@triton.jit
def _cross_entropy(
    logits, labels, losses, stride, ignore_index,
    VOCABULARY: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    known = label != ignore_index
    at_label = tl.load(logits + label, mask=known, other=0.0).to(tl.float32)  # before it is overwritten
    columns = tl.arange(0, BLOCK)
    # -3e38 stands for places beyond the row: its exponential is zero, and its differences with others are finite.
    largest = tl.full((BLOCK,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, VOCABULARY, BLOCK):
        value = tl.load(logits + start + columns, mask=start + columns < VOCABULARY, other=-3.0e38).to(tl.float32)
        larger = tl.maximum(largest, value)
        total = total * tl.exp(largest - larger) + tl.exp(value - larger)
        largest = larger
    maximum = tl.max(largest, 0)
    log_sum = maximum + tl.log(tl.sum(total * tl.exp(largest - maximum), 0))
    tl.store(losses + row, tl.where(known, log_sum - at_label, 0.0))
    if RESIDUAL:
        tl.debug_barrier()  # from here on, every thread has read the label's logit
        for start in range(0, VOCABULARY, BLOCK):
            inside = start + columns < VOCABULARY
            value = tl.load(logits + start + columns, mask=inside, other=-3.0e38).to(tl.float32)
            value = tl.exp(value - log_sum) - tl.where(start + columns == label, 1.0, 0.0)
            value = tl.where(known, value, 0.0)
            tl.store(logits + start + columns, value.to(logits.dtype.element_ty), mask=inside)
