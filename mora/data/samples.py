"""The unit of training, and its storage on disk. Imports no torch, since preparation runs in many processes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import overload

import numpy as np

IGNORE = -100  # the label of a token without loss, as in torch and transformers
_LOSS, _START = 1, 2  # the bits of a token's flags on disk


@dataclass(frozen=True)
class Sample:
    """One sequence: token ids, labels of the same length (IGNORE for no loss), and the number of tokens of its prompt.

    `starts` are the places where the members of a packed sequence begin, including 0; members do not see each other. If it
    is empty, there is one member.
    """

    input_ids: list[int]
    labels: list[int]
    n_prompt: int = 0
    starts: tuple[int, ...] = ()

    @property
    def n_loss(self) -> int:
        """Return the number of tokens that carry a loss: labels that are left after the shift by one."""
        return sum(label != IGNORE for label in self.labels[1:])


def write_shard(folder: Path, samples: Iterable[Sample], vocabulary: int, families: Sequence[int] = ()) -> None:
    """Write samples as flat arrays.

    These are ids.npy, ends.npy, flags.npy if some token has no loss or a member starts, and families.npy if families are
    given, one per sample.
    """
    dtype = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    ids, flags, ends, total = [], [], [], 0
    for sample in samples:
        labels = np.asarray(sample.labels, dtype=np.int64)
        flag = (labels != IGNORE).astype(np.uint8) * _LOSS
        if sample.starts:
            flag[list(sample.starts)] |= _START
        ids.append(np.asarray(sample.input_ids, dtype=dtype))
        flags.append(flag)
        total += len(labels)
        ends.append(total)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "ends.npy", np.asarray(ends, dtype=np.int64))
    np.save(folder / "ids.npy", np.concatenate(ids) if ids else np.zeros(0, dtype))
    joined = np.concatenate(flags) if flags else np.zeros(0, np.uint8)
    if not (joined == _LOSS).all():
        np.save(folder / "flags.npy", joined)
    if len(families):
        np.save(folder / "families.npy", np.asarray(families, dtype=np.int64))


class StoredSamples(Sequence[Sample]):
    """Samples in memory-mapped shards on disk, so that a data set may be far larger than memory."""

    def __init__(self, shards: Sequence[Path]):
        self.shards = list(shards)
        self._ends = [np.load(shard / "ends.npy") for shard in self.shards]
        self._first = [0, *accumulate(len(ends) for ends in self._ends)]
        self._open: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    def __len__(self) -> int:
        return self._first[-1]

    @property
    def longest(self) -> int:
        """Return the number of tokens of the longest sample."""
        return max((int(np.diff(ends, prepend=0).max()) for ends in self._ends if len(ends)), default=0)

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of every sample."""
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(ends, prepend=0) for ends in self._ends)])

    @property
    def families(self) -> np.ndarray:
        """Return the family of every sample, as written."""
        kept = [
            np.load(shard / "families.npy") for shard, ends in zip(self.shards, self._ends, strict=True) if len(ends)
        ]
        return np.concatenate([np.zeros(0, np.int64), *kept])

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all samples together."""
        return sum(int(ends[-1]) for ends in self._ends if len(ends))

    @property
    def loss_tokens(self) -> int:
        """Return the sum of n_loss over all samples."""
        total = 0
        for shard, ends in enumerate(self._ends):
            _, flags = self._arrays(shard)
            if flags is None:
                total += int(ends[-1]) - len(ends) if len(ends) else 0
            else:
                first = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
                total += int(np.count_nonzero(flags & _LOSS)) - int(np.count_nonzero(flags[first] & _LOSS))
        return total

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        shard = bisect_right(self._first, index) - 1
        row = index - self._first[shard]
        ends = self._ends[shard]
        begin, end = int(ends[row - 1]) if row else 0, int(ends[row])
        ids, flags = self._arrays(shard)
        tokens = ids[begin:end].tolist()
        if flags is None:
            return Sample(tokens, list(tokens))
        own = flags[begin:end]
        labels = np.where(own & _LOSS, ids[begin:end].astype(np.int64), IGNORE).tolist()
        return Sample(tokens, labels, starts=tuple(np.flatnonzero(own & _START).tolist()))

    def _arrays(self, shard: int) -> tuple[np.ndarray, np.ndarray | None]:
        if shard not in self._open:
            folder = self.shards[shard]
            flags = folder / "flags.npy"
            self._open[shard] = (
                np.load(folder / "ids.npy", mmap_mode="r"),
                np.load(flags, mmap_mode="r") if flags.is_file() else None,
            )
        return self._open[shard]


class Subset(Sequence[Sample]):
    """Some of the samples, by their indices."""

    def __init__(self, samples: StoredSamples, indices: np.ndarray):
        self.samples, self.indices = samples, indices
        self.lengths = samples.lengths[indices]
        self.longest = int(self.lengths.max(initial=0))

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self.samples[int(i)] for i in self.indices[index]]
        return self.samples[int(self.indices[index])]


def hold_out(samples: StoredSamples, n: int) -> tuple[Subset, Subset]:
    """Return the samples for training and the n for validation, which are drawn in the same way for every run."""
    order = np.random.default_rng(0).permutation(len(samples))
    return Subset(samples, np.sort(order[n:])), Subset(samples, np.sort(order[:n]))


def hold_out_families(families: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw n families, the same for every run; return the indices of each one's first sample, and of all their samples."""
    names, first = np.unique(families, return_index=True)
    drawn = np.random.default_rng(0).permutation(len(names))[:n]
    return np.sort(first[drawn]), np.flatnonzero(np.isin(families, names[drawn]))
