"""Samples to batches: which samples a step sees, and the tensors they become."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mora.padding import padded_length

from .packing import even, join, positions
from .samples import IGNORE, Sample, StoredSamples, Subset

ROW_STEP = 512  # tokens: rows without padding have few different lengths, each of which becomes a CUDA graph


@dataclass(frozen=True)
class Batch:
    """input_ids_BT and labels_BT, int64, padded at the right with `pad_id` and IGNORE.

    No attention mask: attention is causal and the padding comes last, so no real token sees it. `position_ids_BT` only
    where a sequence is packed: transformers keeps the members apart where positions start anew, if it is given no mask
    and no cache.

    bounds: int32, of a row without padding, (1, T): 0, where each of its sequences ends, and T as often as the tensor
    is longer.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor | None = None
    bounds: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, without waiting for it, as a copy to a GPU from memory that is not pinned may do."""
        pins = device.type == "cuda" and not self.input_ids.is_cuda
        tensors = [x if x is None or not pins else x.pin_memory() for x in vars(self).values()]
        return Batch(*(None if x is None else x.to(device, non_blocking=True) for x in tensors))  # type: ignore[arg-type]


def collate(samples: list[Sample], pad_id: int, length: int | None = None) -> Batch:
    """Pad samples to `length` tokens, or to the longest of them, and return them as one batch."""
    length = length or max(len(s.input_ids) for s in samples)
    ids = torch.full((len(samples), length), pad_id, dtype=torch.long)
    labels = torch.full((len(samples), length), IGNORE, dtype=torch.long)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.input_ids)] = torch.tensor(sample.input_ids)
        labels[row, : len(sample.labels)] = torch.tensor(sample.labels)
    if not any(s.starts for s in samples):
        return Batch(ids, labels)
    return Batch(ids, labels, torch.from_numpy(np.stack([positions(s.starts or (0,), length) for s in samples])))


def end_to_end(samples: list[Sample], pad_id: int, length: int, slots: int) -> Batch:
    """Lay at most `slots` samples end to end in one row of `length` tokens; what is left of it is a sequence of its own.

    `slots` makes batches of different numbers of samples alike.
    """
    joined = join(samples)
    batch = collate([joined], pad_id, length)
    assert batch.position_ids is not None
    batch.position_ids[:, len(joined.input_ids) :] = 0
    bounds = torch.full((slots + 2,), length, dtype=torch.int32)
    bounds[: len(samples)] = torch.tensor(joined.starts)
    bounds[len(samples)] = len(joined.input_ids)
    return Batch(batch.input_ids, batch.labels, batch.position_ids, bounds)


def balanced(lengths: Sequence[int], max_tokens: int, ranks: int = 1) -> list[int]:
    """Return where each of a step's micro batches ends, given its ascending lengths.

    None has more than `max_tokens` tokens, padded to its longest sequence, unless it is one sequence that is longer. There
    are as few micro batches as that allows, as many for each rank, and as even in tokens as sorted sequences can be.
    `ranks` divides the number of lengths.
    """
    n = -(-len(_fewest(lengths, max_tokens)) // ranks) * ranks
    ends = _fewest(lengths, bisect_left(range(max_tokens), True, key=lambda tokens: len(_fewest(lengths, tokens)) <= n))
    while len(ends) < n:
        size, end = max((end - start, end) for start, end in pairwise([0, *ends]))
        ends.append(end - size // 2)
        ends.sort()
    return ends


def _fewest(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Return the places of the fewest micro batches of at most so many tokens."""
    ends, start = [], 0
    for i, length in enumerate(lengths):
        if i > start and (i + 1 - start) * length > max_tokens:
            ends.append(i)
            start = i
    return [*ends, len(lengths)]


class Batches:
    """The micro batches of every step, a pure function of (seed, step): epochs of shuffled samples, laid end to end.

    micro_batch_tokens: micro batches of at most so many tokens, instead of `micro_batch_size` sequences; their number is
        then a multiple of `ranks`.
    padding_free: a micro batch is one row of sequences laid end to end; else they are padded to the longest of them.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pad_id: int,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        micro_batch_tokens: int | None = None,
        ranks: int = 1,
        padding_free: bool = False,
    ):
        self.samples, self.pad_id = samples, pad_id
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.micro_batch_tokens, self.ranks, self.padding_free = micro_batch_tokens, ranks, padding_free
        self.seed = seed
        if isinstance(samples, StoredSamples | Subset):
            self.longest = samples.longest
        else:
            self.longest = max(len(s.input_ids) for s in samples)
        self._order: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> list[int]:
        """Return the indices of the samples that step `step` (from 0) sees, in order."""
        start = step * self.global_batch_size
        return [self._at(i) for i in range(start, start + self.global_batch_size)]

    def step(self, step: int) -> Iterator[Batch]:
        """Yield the micro batches of a step, on the CPU. If there are several, each has sequences of like length.

        They add up to the same gradient in any order; dropout masks, which follow the shape and the place, are others.
        """
        chosen = [self.samples[i] for i in self.indices(step)]
        if self.padding_free:
            yield from self._end_to_end(chosen)
            return
        if self.micro_batch_tokens is not None or self.micro_batch_size < len(chosen):
            chosen.sort(key=lambda s: len(s.input_ids))
        for start, end in pairwise([0, *self._ends(chosen)]):
            micro = chosen[start:end]
            yield collate(micro, self.pad_id, self._padded(max(len(s.input_ids) for s in micro)))

    def _end_to_end(self, chosen: list[Sample]) -> Iterator[Batch]:
        assert self.micro_batch_tokens is not None
        bins = even([len(s.input_ids) for s in chosen], self.micro_batch_tokens, self.ranks)
        most = max(sum(len(chosen[i].input_ids) for i in members) for members in bins)
        length = -(-most // ROW_STEP) * ROW_STEP
        for members in bins:
            yield end_to_end([chosen[i] for i in members], self.pad_id, length, len(chosen))

    def loss_tokens(self, step: int) -> int:
        """Return the tokens of a step that carry a loss: the labels that are left after the shift by one."""
        return sum(self.samples[i].n_loss for i in self.indices(step))

    def _ends(self, chosen: list[Sample]) -> list[int]:
        """Return where to end each micro batch."""
        if self.micro_batch_tokens is None:
            return [*range(self.micro_batch_size, len(chosen), self.micro_batch_size), len(chosen)]
        return balanced([self._padded(len(s.input_ids)) for s in chosen], self.micro_batch_tokens, self.ranks)

    def _padded(self, length: int) -> int:
        """Return the length that a micro batch of which this is the longest gets, so that kernels are chosen rarely."""
        return padded_length(length, self.longest)

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.samples))
        if epoch not in self._order:
            self._order = {k: v for k, v in self._order.items() if k >= epoch - 1}
            self._order[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        return int(self._order[epoch][offset])
