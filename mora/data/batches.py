"""From samples to batches: which samples a step sees, and the tensors that they become."""

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

ROW_STEP = 512  # tokens; rows without padding are multiples of it, since each length needs a CUDA graph of its own


@dataclass(frozen=True)
class Batch:
    """input_ids_BT and labels_BT, int64, padded at the right with `pad_id` and IGNORE.

    There is no attention mask: attention is causal and the padding comes last, so no real token sees it. There are
    `position_ids_BT` only if a sequence is packed. If transformers is given neither mask nor cache, it keeps the members of
    a packed sequence apart by the places where positions start anew.

    `bounds`, int32, are for a row (1, T) without padding: 0, then the end of each of its sequences, then T for each entry
    that is left.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor | None = None
    bounds: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, without waiting for the device: it is copied to a GPU from pinned memory."""
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
    """Lay at most `slots` samples end to end in one row of `length` tokens; the rest of the row is a sequence of its own.

    Because of `slots`, the tensors of batches with different numbers of samples have the same shapes.
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

    Padded to its longest sequence, a micro batch has at most `max_tokens` tokens, unless it is a single longer sequence.
    There are as few micro batches as that allows, the same number for each rank, and as even in tokens as sorted sequences
    can be. The number of lengths must be a multiple of `ranks`.
    """
    n = -(-len(_fewest(lengths, max_tokens)) // ranks) * ranks
    ends = _fewest(lengths, bisect_left(range(max_tokens), True, key=lambda tokens: len(_fewest(lengths, tokens)) <= n))
    while len(ends) < n:
        size, end = max((end - start, end) for start, end in pairwise([0, *ends]))
        ends.append(end - size // 2)
        ends.sort()
    return ends


def _fewest(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Return the ends of the micro batches if they are as few as possible, each of at most `max_tokens` tokens."""
    ends, start = [], 0
    for i, length in enumerate(lengths):
        if i > start and (i + 1 - start) * length > max_tokens:
            ends.append(i)
            start = i
    return [*ends, len(lengths)]


class Batches:
    """The micro batches of every step, as a pure function of (seed, step): epochs of shuffled samples, one after the other.

    micro_batch_tokens: if given, micro batches have at most this many tokens instead of `micro_batch_size` sequences, and
        their number is a multiple of `ranks`.
    padding_free: whether a micro batch is one row of sequences laid end to end; else it is padded to its longest sequence.
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

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the micro batches of a step, on the CPU. If there are several, each has sequences of similar length.

        In any order their gradients have the same sum, but not the same dropout masks, which depend on shape and place.
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
        """Return the number of tokens of a step that carry a loss: the labels that are left after the shift by one."""
        return sum(self.samples[i].n_loss for i in self.indices(step))

    def _ends(self, chosen: list[Sample]) -> list[int]:
        """Return where each micro batch ends."""
        if self.micro_batch_tokens is None:
            return [*range(self.micro_batch_size, len(chosen), self.micro_batch_size), len(chosen)]
        return balanced([self._padded(len(s.input_ids)) for s in chosen], self.micro_batch_tokens, self.ranks)

    def _padded(self, length: int) -> int:
        """Return the padded length of a micro batch whose longest sequence is `length`: there are few, for fewer kernels."""
        return padded_length(length, self.longest)

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.samples))
        if epoch not in self._order:
            self._order = {k: v for k, v in self._order.items() if k >= epoch - 1}
            self._order[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        return int(self._order[epoch][offset])
