"""A `Gather` as one Triton kernel, one pass over what it reads and writes. Sums and rotation are in fp32 for all dtypes.

Importing this file imports Triton.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mora.sizes import aligned

from .direct_launch import DirectLaunch
from .gather import Gather
from .operators import rotation_table

TILE = 4096  # outputs of one program, 32 a thread
SMALL_TILE_BELOW_ROWS = 1024  # below it programs are smaller, so that every multiprocessor has some


@dataclass(frozen=True)
class Dropout:
    """A mask over the operator's input that is never stored: a hash of `seed`, row and column, drawn anew in backward.

    seed: one int64 on the device of the data.
    """

    p: float
    seed: Tensor


def run(plan: Gather, source: Tensor, out: Tensor, dropout: Dropout | None = None, first_row: int = 0) -> Tensor:
    """out (rows, plan.width) = the map of source (rows, ...). Both have contiguous rows and any floating dtype but fp64.

    dropout: acts on the source of `compress` and on the output of `compress_adjoint`: give it to those two only.
    first_row: the row of the whole input at which the data given begin, for dropout.
    """
    rows = out.shape[0]
    if rows == 0:
        return out
    p, seed = (dropout.p, dropout.seed) if dropout else (0.0, source)
    strides = source.stride(0), out.stride(0)
    launcher = _launcher(
        plan, source.device, source.dtype, out.dtype, strides, p, few_rows=rows < SMALL_TILE_BELOW_ROWS
    )
    launcher(source, out, seed, first_row)
    return out


class _Launcher:
    """Launches a Gather on tensors of one kind."""

    def __init__(self, plan: Gather, device: torch.device, strides: tuple[int, int], p: float, few_rows: bool):
        self._table: tuple[Tensor, Tensor] | None = None
        if plan.rotation:
            R = plan.block_out or plan.block_source
            self._table = rotation_table(plan.turned // R, R, device, torch.float32)
        constants = _constants(plan, drops=p > 0, tile=TILE // 8 if few_rows else TILE)
        self._rows_a_program = constants["ROWS"]
        self._columns = -(-plan.width // constants["COLUMNS"])
        self._strides, self._drop = strides, (int(p * 2**32), 1 / (1 - p))
        self._launch = DirectLaunch(gather_sum, constants)

    def __call__(self, source: Tensor, out: Tensor, seed: Tensor, first_row: int) -> None:
        n_rows = out.shape[0]
        grid = (-(-n_rows // self._rows_a_program), self._columns, 1)
        tensors = (source, out, *(self._table or (source, source)), seed)  # the table is not read without a rotation
        self._launch(grid, tensors, (n_rows, *self._strides, first_row, *self._drop))


@functools.lru_cache(maxsize=4096)
def _launcher(
    plan: Gather,
    device: torch.device,
    source: torch.dtype,
    out: torch.dtype,
    strides: tuple[int, int],
    p: float,
    few_rows: bool,
) -> _Launcher:
    """One for each kind of tensors: the dtypes choose the compiled kernel, too."""
    return _Launcher(plan, device, strides, p, few_rows)


def _constants(plan: Gather, drops: bool, tile: int) -> dict[str, int]:
    """Return what a kernel is compiled for, in the order of its parameters: the plan, and the shape of a tile."""
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
        "TURN": plan.rotation,
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
def plane_of(j, R: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Return the plane in which element j of a block turns, whether j is its first element, and the way to the other."""
    if INTERLEAVED:
        plane = j // 2
        is_first = j % 2 == 0
        to_partner = tl.where(is_first, 1, -1)
    else:
        is_first = j < R // 2
        plane = tl.where(is_first, j, j - R // 2)
        to_partner = tl.where(is_first, R // 2, -(R // 2))
    return plane, is_first, to_partner


@triton.jit
def _turned(
    source, row, row_ok, stride, position, ok, cos, sin, seed, first_row, threshold, keep_scale,
    N_SOURCE: tl.constexpr, LIMIT: tl.constexpr, MODULUS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
    R: tl.constexpr, TURNED: tl.constexpr, TURN: tl.constexpr, INTERLEAVED: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Return the element at `position` after block i is rotated by TURN * i * theta_j in its j-th plane (Eq. 10, 11)."""
    block = position // R
    plane, is_first, to_partner = plane_of(position % R, R, INTERLEAVED)
    partner = position + to_partner
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
    """Compute a tile of `Gather`. Column arithmetic is done once per column, not once per element."""
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
