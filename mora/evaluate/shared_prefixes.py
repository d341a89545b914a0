"""Inputs that begin alike, as the questions of a subject do after the same examples."""

from __future__ import annotations

from dataclasses import dataclass

WORTH = 2**14  # tokens that a group must save: what is computed apart makes more, and smaller, passes
PART = 0.5  # of the longest input that all of a group share at least: what they do not share is then the smaller part

Ids = tuple[int, ...]


def by_beginning(longest: dict[Ids, int]) -> list[tuple[int, list[Ids]]]:
    """Group inputs by the tokens that they begin with.

    Args:
        longest: For each input, the number of its last tokens that are never shared, since their logits are wanted.

    Returns:
        For each group the number of tokens that all its inputs share, and the inputs. First those that share too little,
        as 0.
    """
    groups: list[_Group] = []
    for ids in sorted(longest):
        own = len(ids) - longest[ids]
        if not groups or not groups[-1].take(ids, own):
            groups.append(_Group(own, len(ids), [ids]))
    worth = [group for group in groups if group.shared * (len(group.inputs) - 1) >= WORTH]
    kept = {ids for group in worth for ids in group.inputs}
    alone = [ids for ids in longest if ids not in kept]
    return [*([(0, alone)] if alone else []), *((group.shared, group.inputs) for group in worth)]


@dataclass
class _Group:
    shared: int
    longest: int
    inputs: list[Ids]

    def take(self, ids: Ids, own: int) -> bool:
        """Take an input in, `own` of whose tokens may be shared, unless too little would be; return whether it was."""
        most = min(self.shared, own)
        pairs = zip(self.inputs[0][:most], ids, strict=False)
        common = next((i for i, (one, other) in enumerate(pairs) if one != other), most)
        longest = max(self.longest, len(ids))
        if common < PART * longest:
            return False
        self.shared, self.longest = common, longest
        self.inputs.append(ids)
        return True
