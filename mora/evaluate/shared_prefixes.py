"""Group inputs by the prefix that they share, such as a subject's questions after the same examples."""

from __future__ import annotations

from dataclasses import dataclass

WORTH = 2**14  # tokens that a group must save, since a group of its own means more and smaller forward passes
PART = 0.5  # the least share of a group's longest input that all share, so that the rest is the smaller part

Ids = tuple[int, ...]


def by_shared_prefix(longest: dict[Ids, int]) -> list[tuple[int, list[Ids]]]:
    """Group inputs by their shared prefix.

    Args:
        longest: For each input, the number of last tokens that are never shared, since their logits are needed.

    Returns:
        For each group, the number of tokens that all its inputs share, and the inputs. Inputs that share too little come
        first, as a group that shares 0.
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
        """Add an input, of which `own` tokens may be shared, unless too little would be; return whether it was added."""
        most = min(self.shared, own)
        pairs = zip(self.inputs[0][:most], ids, strict=False)
        common = next((i for i, (one, other) in enumerate(pairs) if one != other), most)
        longest = max(self.longest, len(ids))
        if common < PART * longest:
            return False
        self.shared, self.longest = common, longest
        self.inputs.append(ids)
        return True
