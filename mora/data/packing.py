"""Several documents in one sequence: in blocks that are cut anywhere, or whole, so that they do not see each other."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from .samples import IGNORE, Sample


def blocks(documents: Iterable[list[int]], length: int) -> Iterator[Sample]:
    """Lay the documents end to end and cut them every `length` tokens. A shorter last piece is left out.

    Every token carries a loss, and sees everything before it in its block, including other documents.
    """
    rest: list[int] = []
    for document in documents:
        rest += document
        whole = len(rest) - len(rest) % length
        for start in range(0, whole, length):
            ids = rest[start : start + length]
            yield Sample(ids, list(ids))
        rest = rest[whole:]


def bins(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Return which samples share a sequence of `capacity` tokens. Longest first, each goes to the fullest with room.

    Args:
        lengths: The number of tokens of each sample.
        capacity: The number of tokens of a sequence.

    Raises:
        ValueError: A sample is longer than the capacity.
    """
    packed: list[list[int]] = []
    room: dict[int, list[int]] = {}  # number of free tokens -> sequences
    free: list[int] = []  # the keys of `room`, sorted
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        size = int(lengths[i])
        if size > capacity:
            raise ValueError(f"sample {i} has {size} tokens, more than {capacity}")
        at = bisect_left(free, size)
        if at == len(free):
            chosen, left = len(packed), capacity
            packed.append([])
        else:
            left = free[at]
            chosen = room[left].pop()
            if not room[left]:
                del room[left], free[at]
        packed[chosen].append(i)
        left -= size
        if left:
            if left not in room:
                room[left] = []
                insort(free, left)
            room[left].append(chosen)
    return packed


def even(lengths: Sequence[int], capacity: int, multiple: int = 1) -> list[list[int]]:
    """Return which samples share a row of at most `capacity` tokens. Longest first, each goes to the row with the fewest.

    There are as few rows as that allows, and a multiple of `multiple`. If a sample is longer than `capacity`, rows may be as
    long as it. No row is empty if `multiple` divides the number of samples.
    """
    capacity = max(capacity, *lengths)
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    n = -(-sum(lengths) // capacity)
    while True:
        n = -(-n // multiple) * multiple
        rows: list[list[int]] = [[] for _ in range(n)]
        tokens = [0] * n
        for i in longest_first:
            row = tokens.index(min(tokens))
            rows[row].append(i)
            tokens[row] += lengths[i]
        if max(tokens) <= capacity:
            return rows
        n += 1


def join(samples: Sequence[Sample]) -> Sample:
    """Join samples into one sequence in which they do not see each other.

    The first token of each carries no loss, since nothing comes before it.
    """
    ids: list[int] = []
    labels: list[int] = []
    starts = []
    for sample in samples:
        starts.append(len(ids))
        ids += sample.input_ids
        labels += [IGNORE, *sample.labels[1:]]
    return Sample(ids, labels, starts=tuple(starts))


def positions(starts: Sequence[int], length: int) -> np.ndarray:
    """Return the position of every token within its own member, as int64 (length,).

    The positions of padding continue those of the last member.
    """
    index = np.arange(length)
    first = np.zeros(length, dtype=np.int64)
    first[list(starts)] = starts
    return index - np.maximum.accumulate(first)
