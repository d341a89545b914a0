"""The four linear maps of a MoRA operator, described as index arithmetic for one Triton kernel.

f_comp, f_decomp and their adjoints all have the same form. An output is a sum over a few elements of the source,

    out[o] = sum over t of source[group(position(o, t))],

where padding, circular wrap, tiling, groups and blocks are index arithmetic in `position` and `group`. A `Gather` holds the
numbers of that arithmetic for one map; `gather_kernel.py` computes it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from mora.sizes import ALIGNMENT, aligned

from .operators import Decouple, Operator, Rotation, Sharing


@dataclass(frozen=True)
class Gather:
    """The index arithmetic of one map.

    position(o, t) = o * first + min(o, larger) + t * stride, for t < terms; if o >= larger > 0, for t < terms - 1. Positions
    from `limit` on are left out. group(p) is p mod `modulus` or, if `group_size` > 0, the contiguous group of p, of which
    the first `group_larger` hold one element more. Groups from `n_source` on are left out.
    """

    n_out: int
    n_source: int
    limit: int
    terms: int = 1
    first: int = 1
    larger: int = 0
    stride: int = 0
    modulus: int = 0  # 0: a position is its own group
    group_size: int = 0
    group_larger: int = 0
    block_out: int = 0  # > 0: the output is in blocks of this length, each padded in memory to aligned(length)
    block_source: int = 0
    rotation: int = 0  # +1: positions are rotated; -1: they are rotated back
    interleaved: bool = False

    @property
    def plain_terms(self) -> int:
        """The number of first terms whose positions are all within `limit` and need no modulus."""
        if self.rotation or self.group_size:
            return 0
        bound = min(self.limit, self.n_source, self.modulus or self.limit)
        last = (self.n_out - 1) * self.first + min(self.n_out - 1, self.larger)
        full = self.terms - (self.larger > 0)
        if last >= bound:
            return 0
        return min(full, (bound - 1 - last) // self.stride + 1) if self.stride else full

    @property
    def turned(self) -> int:
        """The number of positions that have an angle: the longer side, in whole blocks."""
        R = self.block_out or self.block_source
        return math.ceil(max(self.n_out, self.n_source) / R) * R if self.rotation else 0

    @property
    def width(self) -> int:
        """The number of columns of the output in memory."""
        return self.n_out // self.block_out * aligned(self.block_out) if self.block_out else self.n_out


@dataclass(frozen=True)
class Maps:
    """The gathers of one operator.

    Attributes:
        n_blocks: The number of blocks that M acts on; 1 for sharing.
        block_matrices: Maps row a of M to row a of every P^i = M R_i, side by side, so that y^i = P^i x^i is a batched
            product on x itself. None unless the blocks lie in x and y as they are, aligned and without padding.
        block_matrices_adjoint: Its adjoint.
    """

    compress: Gather
    decompress: Gather
    compress_adjoint: Gather
    decompress_adjoint: Gather
    n_blocks: int
    block_matrices: Gather | None = None
    block_matrices_adjoint: Gather | None = None


@functools.lru_cache(maxsize=1024)
def maps(operator: Operator) -> Maps | None:
    """Return the gathers of an operator; None if it has no kernel."""
    if isinstance(operator, Sharing):
        return _sharing(operator)
    if isinstance(operator, Decouple):
        return _blocks(operator)
    return None


def _sharing(op: Sharing) -> Maps:
    K, D, R = op.in_features, op.out_features, op.r_hat
    kind_in, kind_out, padded = op.kind_in, op.kind_out, op.padded_length
    circular = op.pad == "circular"
    wraps = circular and padded > K
    down = _sum(R, K, padded if circular else K, kind_in, op.split)
    return Maps(
        compress=replace(down, modulus=K if wraps else 0, block_out=R),
        decompress=replace(_spread(D, R, D, kind_out, op.split), block_source=R),
        compress_adjoint=replace(
            _spread(K, R, K, kind_in, op.split), terms=1 + wraps, stride=K, limit=padded if wraps else K, block_source=R
        ),
        decompress_adjoint=replace(_sum(R, D, D, kind_out, op.split), block_out=R),
        n_blocks=1,
    )


def _sum(groups: int, n_source: int, limit: int, kind: str, split: str) -> Gather:
    """Return the gather in which out[o] is the sum of group o."""
    if kind == "modulo":
        return Gather(groups, n_source, limit, terms=math.ceil(limit / groups), stride=groups)
    size, larger = divmod(n_source, groups) if split == "uneven" else (math.ceil(n_source / groups), 0)
    return Gather(groups, n_source, limit, terms=size + (larger > 0), first=size, larger=larger, stride=1)


def _spread(n_out: int, groups: int, length: int, kind: str, split: str) -> Gather:
    """Return the gather in which out[o] is the element of the group of o."""
    if kind == "modulo":
        return Gather(n_out, groups, length, modulus=groups)
    size, larger = divmod(length, groups) if split == "uneven" else (math.ceil(length / groups), 0)
    return Gather(n_out, groups, length, group_size=size, group_larger=larger)


def _blocks(op: Decouple) -> Maps:
    K, D, R = op.in_features, op.out_features, op.r_hat
    n_blocks = op.n_multiplied
    P, read = n_blocks * R, op.n_read * R
    circular = op.pad == "circular"
    wraps = circular and read > K
    rotation = int(isinstance(op, Rotation))
    limit = read if circular else min(read, K)
    compress = Gather(P, K, limit, terms=math.ceil(read / P), stride=P, modulus=K if wraps else 0, block_out=R)
    adjoint = Gather(K, P, read, terms=1 + wraps, stride=K, modulus=P if read > P else 0, block_source=R)
    decompress = Gather(D, P, D, modulus=P, block_source=R)
    decompress_adjoint = Gather(P, D, D, terms=math.ceil(D / P), stride=P, block_out=R)
    interleaved = op.pairs == "interleaved"
    matrices = matrices_adjoint = None
    if K == D == P and R % ALIGNMENT == 0:
        matrices = Gather(P, R, P, modulus=R, block_out=R, rotation=-rotation, interleaved=interleaved)
        matrices_adjoint = Gather(
            R, P, P, terms=n_blocks, stride=R, block_source=R, rotation=rotation, interleaved=interleaved
        )
    return Maps(
        compress=replace(compress, rotation=rotation, interleaved=interleaved),
        decompress=decompress,
        compress_adjoint=replace(adjoint, rotation=-rotation, interleaved=interleaved),
        decompress_adjoint=decompress_adjoint,
        n_blocks=n_blocks,
        block_matrices=matrices,
        block_matrices_adjoint=matrices_adjoint,
    )
