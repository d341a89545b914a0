"""Samples to batches: which samples a step sees, and the tensors they become."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IGNORE = -100  # label of a token without loss, as torch and transformers use it


@dataclass(frozen=True)
class Sample:
    """One sequence: token ids, labels of the same length (IGNORE where there is no loss), tokens of its prompt."""

    input_ids: list[int]
    labels: list[int]
    n_prompt: int = 0


@dataclass(frozen=True)
class Batch:
    """input_ids_BT and labels_BT, int64, padded at the right with `pad_id` and IGNORE.

    No attention mask: attention is causal and the padding comes last, so no real token sees it.
    """

    input_ids: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device, non_blocking=True), self.labels.to(device, non_blocking=True))


def collate(samples: list[Sample], pad_id: int, length: int | None = None) -> Batch:
    """Pads to `length`, or to the longest sample."""
    length = length or max(len(s.input_ids) for s in samples)
    ids = torch.full((len(samples), length), pad_id, dtype=torch.long)
    labels = torch.full((len(samples), length), IGNORE, dtype=torch.long)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.input_ids)] = torch.tensor(sample.input_ids)
        labels[row, : len(sample.labels)] = torch.tensor(sample.labels)
    return Batch(ids, labels)


class Batches:
    """The micro batches of every step, a pure function of (seed, step): epochs of shuffled samples, laid end to end."""

    def __init__(self, samples: list[Sample], pad_id: int, global_batch_size: int, micro_batch_size: int, seed: int):
        self.samples, self.pad_id = samples, pad_id
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.seed = seed
        self.length = max(len(s.input_ids) for s in samples)  # one shape for every batch: kernels are chosen once
        self._order: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> list[int]:
        """Which samples step `step` (from 0) sees, in order."""
        start = step * self.global_batch_size
        return [self._at(i) for i in range(start, start + self.global_batch_size)]

    def step(self, step: int) -> Iterator[Batch]:
        """The micro batches of a step, on the CPU."""
        chosen = [self.samples[i] for i in self.indices(step)]
        for i in range(0, len(chosen), self.micro_batch_size):
            yield collate(chosen[i : i + self.micro_batch_size], self.pad_id, self.length)

    def loss_tokens(self, step: int) -> int:
        """Tokens of the step that carry a loss: the labels that are left after the shift by one."""
        return sum(sum(label != IGNORE for label in self.samples[i].labels[1:]) for i in self.indices(step))

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.samples))
        if epoch not in self._order:
            self._order = {k: v for k, v in self._order.items() if k >= epoch - 1}
            self._order[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        return int(self._order[epoch][offset])
