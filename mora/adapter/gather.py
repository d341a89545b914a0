"""The four linear maps of a MoRA operator as one Triton kernel, one pass over what they read and write.

f_comp, f_decomp and their adjoints all have the same form: an output is a sum over a few elements of the source,

    out[o] = sum over t of source[group(position(o, t))],

and padding, circular wrap, tiling, groups and blocks are index arithmetic in `position` and `group`. A `Gather` names that
arithmetic for one map; `run` carries it out. Sums are taken in fp32 whatever the dtypes are, rotation too.

Importing this file imports Triton.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operators import Decouple, Operator, Rotation, Sharing, rotation_table

ALIGNMENT = 8  # elements: 16 bytes in bf16, what cuBLAS needs of a row for its fast kernels
TILE = 4096  # outputs of one program, 32 a thread
FEW_ROWS = 1024  # below it programs are smaller, so that every multiprocessor has some


def aligned(r_hat: int) -> int:
    """r_hat, or the next multiple of ALIGNMENT: the length in memory of a compressed block; the rest is zeros."""
    return math.ceil(r_hat / ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Gather:
    """Index arithmetic of one map.

    position(o, t) = o * first + min(o, larger) + t * stride, for t < terms, and t < terms - 1 where o >= larger > 0;
    positions from `limit` on are left out. group(p) = p mod `modulus`, or the contiguous group of p where
    `group_size` > 0 (the first `group_larger` groups hold one more); groups from `n_source` on are left out.
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
    block_out: int = 0  # > 0: the output lies in blocks of this length, each in aligned(block) memory
    block_source: int = 0
    turn: int = 0  # +1, -1: positions are turned by rotation, or back
    interleaved: bool = False

    @property
    def plain_terms(self) -> int:
        """The first terms, whose positions are all within `limit` and need no modulus."""
        if self.turn or self.group_size:
            return 0
        bound = min(self.limit, self.n_source, self.modulus or self.limit)
        last = (self.n_out - 1) * self.first + min(self.n_out - 1, self.larger)
        whole = self.terms - (self.larger > 0)
        if last >= bound:
            return 0
        return min(whole, (bound - 1 - last) // self.stride + 1) if self.stride else whole

    @property
    def turned(self) -> int:
        """The positions that have an angle: whole blocks of the longer side."""
        R = self.block_out or self.block_source
        return max(self.n_out, self.n_source) // R * R if self.turn else 0

    @property
    def width(self) -> int:
        """Columns of the output in memory."""
        return self.n_out // self.block_out * aligned(self.block_out) if self.block_out else self.n_out


@dataclass(frozen=True)
class Maps:
    """The gathers of one operator. `n_blocks` counts the blocks that can reach the output; 1 for sharing.

    block_matrices, for blocks that lie in x and y as they are, aligned and without padding, else None: row a of M -> row a
    of every P^i = M R_i side by side, so that y^i = P^i x^i is a batched product on x itself. With it its adjoint.
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
    """None for an operator that has no kernel."""
    if isinstance(operator, Sharing):
        return _sharing(operator)
    if isinstance(operator, Decouple):
        return _blocks(operator)
    return None


def _sharing(op: Sharing) -> Maps:
    K, D, R = op.in_features, op.out_features, op.r_hat
    kind_in, kind_out = op.groups.split("-")[0], op.groups.split("-")[-1]
    circular = op.pad == "circular"
    padded = K if kind_in == "contiguous" and op.split == "uneven" else math.ceil(K / R) * R
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
    """out[o] = the sum of group o."""
    if kind == "modulo":
        return Gather(groups, n_source, limit, terms=math.ceil(limit / groups), stride=groups)
    size, larger = divmod(n_source, groups) if split == "uneven" else (math.ceil(n_source / groups), 0)
    return Gather(groups, n_source, limit, terms=size + (larger > 0), first=size, larger=larger, stride=1)


def _spread(n_out: int, groups: int, length: int, kind: str, split: str) -> Gather:
    """out[o] = the group of o."""
    if kind == "modulo":
        return Gather(n_out, groups, length, modulus=groups)
    size, larger = divmod(length, groups) if split == "uneven" else (math.ceil(length / groups), 0)
    return Gather(n_out, groups, length, group_size=size, group_larger=larger)


def _blocks(op: Decouple) -> Maps:
    K, D, R = op.in_features, op.out_features, op.r_hat
    folds = op.overflow == "fold" and op.n_blocks_out < op.n_blocks
    n_blocks = op.n_blocks if folds else min(op.n_blocks, op.n_blocks_out)  # later blocks are dropped: never computed
    P, rounds = n_blocks * R, op.n_blocks_out * R
    circular = op.pad == "circular"
    wraps = circular and P > K
    turn = int(isinstance(op, Rotation))
    compress = Gather(P, K, P if circular else min(P, K), modulus=K if wraps else 0, block_out=R)
    adjoint = Gather(K, P, P, terms=1 + wraps, stride=K, block_source=R)
    if folds:
        decompress = Gather(D, P, P, terms=math.ceil(P / rounds), stride=rounds, block_source=R)
        decompress_adjoint = Gather(P, D, P, modulus=rounds, block_out=R)
    else:
        decompress = Gather(D, P, D, modulus=P, block_source=R)
        decompress_adjoint = Gather(P, D, D, terms=math.ceil(D / P), stride=P, block_out=R)
    interleaved = op.pairs == "interleaved"
    matrices = matrices_adjoint = None
    if K == D == P and R % ALIGNMENT == 0:
        matrices = Gather(P, R, P, modulus=R, block_out=R, turn=-turn, interleaved=interleaved)
        matrices_adjoint = Gather(R, P, P, terms=n_blocks, stride=R, block_source=R, turn=turn, interleaved=interleaved)
    return Maps(
        compress=replace(compress, turn=turn, interleaved=interleaved),
        decompress=decompress,
        compress_adjoint=replace(adjoint, turn=-turn, interleaved=interleaved),
        decompress_adjoint=decompress_adjoint,
        n_blocks=n_blocks,
        block_matrices=matrices,
        block_matrices_adjoint=matrices_adjoint,
    )


@dataclass(frozen=True)
class Dropout:
    """A mask over the operator's input that is never stored: a hash of `seed`, row and column, drawn anew in backward.

    seed: one int64 on the device of the data. `first_row` is the row of the whole input at which the data given begin.
    """

    p: float
    seed: Tensor
    first_row: int = 0


def run(plan: Gather, source: Tensor, out: Tensor, dropout: Dropout | None = None) -> Tensor:
    """out (rows, plan.width) = the map of source (rows, ...). Both have contiguous rows and any floating dtype but fp64.

    dropout: acts on the source of `compress` and on the output of `compress_adjoint`: give it to those two only.
    """
    rows = out.shape[0]
    if rows == 0:
        return out
    cos = sin = source  # not read without a turn
    if plan.turn:
        R = plan.block_out or plan.block_source
        cos, sin = rotation_table(plan.turned // R, R, source.device, torch.float32)
    constants = _constants(plan, drops=dropout is not None, tile=TILE if rows >= FEW_ROWS else TILE // 8)
    grid = (triton.cdiv(rows, constants["ROWS"]), triton.cdiv(plan.width, constants["COLUMNS"]))
    with torch.cuda.device_of(source):  # Triton launches on the current device, whatever its arguments are on
        gather_sum[grid](
            source, out, cos, sin, dropout.seed if dropout else source,
            rows, source.stride(0), out.stride(0), dropout.first_row if dropout else 0,
            int(dropout.p * 2**32) if dropout else 0, 1 / (1 - dropout.p) if dropout else 1.0,
            **constants,
        )  # fmt: skip
    return out


@functools.lru_cache(maxsize=4096)
def _constants(plan: Gather, drops: bool, tile: int) -> dict[str, int]:
    """What a kernel is compiled for: the plan, and the shape of a tile."""
    columns = min(triton.next_power_of_2(plan.width), 512)
    return {
        "N_OUT": plan.n_out,
        "N_SOURCE": plan.n_source,
        "LIMIT": plan.limit,
        "TERMS": plan.terms,
        "PLAIN": plan.plain_terms,
        "FIRST": plan.first,
        "LARGER": plan.larger,
        "STRIDE": plan.stride,
        "MODULUS": plan.modulus,
        "GROUP_SIZE": plan.group_size,
        "GROUP_LARGER": plan.group_larger,
        "WIDTH": plan.width,
        "BLOCK_OUT": plan.block_out,
        "ALIGNED_OUT": aligned(plan.block_out),
        "BLOCK_SOURCE": plan.block_source,
        "ALIGNED_SOURCE": aligned(plan.block_source),
        "TURN": plan.turn,
        "TURNED": plan.turned,
        "INTERLEAVED": plan.interleaved,
        "DROPS_SOURCE": drops and plan.block_out > 0,
        "DROPS_OUT": drops and plan.block_out == 0,
        "ROWS": tile // columns,
        "COLUMNS": columns,
    }


@triton.jit
def _kept(row, column, WIDTH: tl.constexpr, seed, threshold):
    """Whether dropout keeps an element: a 32-bit mixing hash (xor-shift, multiply) of its index and 64 bits of seed."""
    h = (row * WIDTH + column).to(tl.uint32) + (seed & 0xFFFFFFFF).to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = h ^ ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    h = (h ^ (h >> 15)) * 0x846CA68B
    h = h ^ (h >> 16)
    return h.to(tl.int64) >= threshold


@triton.jit
def _fetch(
    source, row, row_ok, stride, position, ok, seed, first_row, threshold, keep_scale,
    N_SOURCE: tl.constexpr, LIMIT: tl.constexpr, MODULUS: tl.constexpr, GROUP_SIZE: tl.constexpr,
    GROUP_LARGER: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, DROPS: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """source[row, group(position)] in fp32, 0 where it is left out. `position` and `ok` are given a column."""
    group = position
    if not PLAIN:
        ok = ok & (position < LIMIT)
        if GROUP_SIZE > 0:
            head = GROUP_LARGER * (GROUP_SIZE + 1)
            group = tl.where(
                position < head, position // (GROUP_SIZE + 1), GROUP_LARGER + (position - head) // GROUP_SIZE
            )
        elif MODULUS > 0:
            group = position % MODULUS
        ok = ok & (group < N_SOURCE)
    place = group
    if ALIGNED != BLOCK:
        place = group // BLOCK * ALIGNED + group % BLOCK
    pointers = source + row[:, None] * stride + place[None, :]
    value = tl.load(pointers, mask=row_ok[:, None] & ok[None, :], other=0.0).to(tl.float32)
    if DROPS:
        kept = _kept(row[:, None] + first_row, group[None, :], N_SOURCE, seed, threshold)
        value = tl.where(kept, value * keep_scale, 0.0)
    return value


@triton.jit
def _turned(
    source, row, row_ok, stride, position, ok, cos, sin, seed, first_row, threshold, keep_scale,
    N_SOURCE: tl.constexpr, LIMIT: tl.constexpr, MODULUS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
    R: tl.constexpr, TURNED: tl.constexpr, TURN: tl.constexpr, INTERLEAVED: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """What stands at `position` after block i is turned by TURN * i * theta_j in its j-th plane (Eq. 10, 11)."""
    block = position // R
    j = position % R
    if INTERLEAVED:
        is_first = j % 2 == 0
        plane = j // 2
        partner = tl.where(is_first, position + 1, position - 1)
    else:
        is_first = j < R // 2
        plane = tl.where(is_first, j, j - R // 2)
        partner = tl.where(is_first, position + R // 2, position - R // 2)
    angle_ok = ok & (position < TURNED)
    c = tl.load(cos + block * (R // 2) + plane, mask=angle_ok, other=1.0)
    s = tl.load(sin + block * (R // 2) + plane, mask=angle_ok, other=0.0)
    s = tl.where(is_first, -TURN * s, TURN * s)
    own = _fetch(
        source, row, row_ok, stride, position, ok, seed, first_row, threshold, keep_scale,
        N_SOURCE, LIMIT, MODULUS, 0, 0, BLOCK, ALIGNED, DROPS, False,
    )  # fmt: skip
    other = _fetch(
        source, row, row_ok, stride, partner, ok, seed, first_row, threshold, keep_scale,
        N_SOURCE, LIMIT, MODULUS, 0, 0, BLOCK, ALIGNED, DROPS, False,
    )  # fmt: skip
    return own * c[None, :] + other * s[None, :]


@triton.jit(do_not_specialize=["n_rows", "first_row", "threshold"])
def gather_sum(
    source, out, cos, sin, seed_pointer,
    n_rows, source_stride, out_stride, first_row, threshold, keep_scale,
    N_OUT: tl.constexpr, N_SOURCE: tl.constexpr, LIMIT: tl.constexpr, TERMS: tl.constexpr, PLAIN: tl.constexpr,
    FIRST: tl.constexpr, LARGER: tl.constexpr, STRIDE: tl.constexpr, MODULUS: tl.constexpr,
    GROUP_SIZE: tl.constexpr, GROUP_LARGER: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_OUT: tl.constexpr, ALIGNED_OUT: tl.constexpr, BLOCK_SOURCE: tl.constexpr, ALIGNED_SOURCE: tl.constexpr,
    TURN: tl.constexpr, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr,
    DROPS_SOURCE: tl.constexpr, DROPS_OUT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of `Gather`. Column arithmetic is done once a column, not once an element."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_ok = row < n_rows
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if ALIGNED_OUT != BLOCK_OUT:
        o = column // ALIGNED_OUT * BLOCK_OUT + column % ALIGNED_OUT
        ok = (column < WIDTH) & (column % ALIGNED_OUT < BLOCK_OUT)
    else:
        o = column
        ok = column < WIDTH
    seed = tl.load(seed_pointer) if DROPS_SOURCE or DROPS_OUT else 0
    start = o * FIRST
    if LARGER > 0:
        start += tl.minimum(o, LARGER)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for t in tl.range(0, PLAIN, loop_unroll_factor=8):
        total += _fetch(
            source, row, row_ok, source_stride, start + t * STRIDE, ok, seed, first_row, threshold, keep_scale,
            N_SOURCE, LIMIT, MODULUS, GROUP_SIZE, GROUP_LARGER, BLOCK_SOURCE, ALIGNED_SOURCE, DROPS_SOURCE, True,
        )  # fmt: skip
    R: tl.constexpr = BLOCK_OUT + BLOCK_SOURCE
    end: tl.constexpr = LIMIT + (R if TURN != 0 else 0)  # a partner may stand R / 2 before its position
    lowest = tl.program_id(1) * COLUMNS // ALIGNED_OUT * BLOCK_OUT if BLOCK_OUT > 0 else tl.program_id(1) * COLUMNS
    lowest = lowest * FIRST + (tl.minimum(lowest, LARGER) if LARGER > 0 else 0)
    for t in tl.range(PLAIN, TERMS, loop_unroll_factor=2):
        if lowest + t * STRIDE < end:  # else the term has nothing for the whole tile
            live = ok
            if LARGER > 0:
                live = ok & ((t < TERMS - 1) | (o < LARGER))
            if TURN != 0:
                total += _turned(
                    source, row, row_ok, source_stride, start + t * STRIDE, live, cos, sin, seed, first_row, threshold,
                    keep_scale, N_SOURCE, LIMIT, MODULUS, BLOCK_SOURCE, ALIGNED_SOURCE,
                    R, TURNED, TURN, INTERLEAVED, DROPS_SOURCE,
                )  # fmt: skip
            else:
                total += _fetch(
                    source, row, row_ok, source_stride, start + t * STRIDE, live, seed, first_row, threshold, keep_scale,
                    N_SOURCE, LIMIT, MODULUS, GROUP_SIZE, GROUP_LARGER, BLOCK_SOURCE, ALIGNED_SOURCE, DROPS_SOURCE, False,
                )  # fmt: skip
    if DROPS_OUT:
        kept = _kept(row[:, None] + first_row, column[None, :], WIDTH, seed, threshold)
        total = tl.where(kept, total * keep_scale, 0.0)
    pointers = out + row[:, None] * out_stride + column[None, :]
    tl.store(pointers, total.to(out.dtype.element_ty), mask=row_ok[:, None] & (column < WIDTH)[None, :])
