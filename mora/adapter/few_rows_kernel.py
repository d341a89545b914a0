"""y += scaling * f_decomp(M f_comp(x)) for a few rows, in one Triton kernel: all that decoding launches beside the base.

Decoding has one row per sequence and step, and the GPU waits for the CPU: what counts is how many operations a layer
launches. LoRA has four beside the base's, the products of `products.py` have three, this has one (and each of the two
one more for a bias, which is added last). Each program handles SQUARE_ROWS rows of M for one row of x. It computes
f_comp(x) itself, reading x's K values, which are in the cache, and adds its part of M f_comp(x) to the outputs that
f_decomp assigns to it. Sums are in fp32; f_comp(x) is rounded to M's dtype, as in the other forms.

Importing this file imports Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .direct_launch import DirectLaunch
from .gather import Gather, maps
from .gather_kernel import plane_of
from .operators import Decouple, Operator, Rotation, rotation_table

SQUARE_ROWS = 16  # rows of M that a program handles
TILE = 4096  # elements of the largest tile
MOST_BLOCKS = 128  # blocks that a program can hold at once


def few_rows(operator: Operator) -> FewRows | None:
    """None for an operator that the kernels cannot compute: truncation, and one of very many blocks."""
    if isinstance(operator, Decouple):
        return FewRows(operator) if operator.n_multiplied <= MOST_BLOCKS else None
    return FewRows(operator) if maps(operator) is not None else None


class FewRows:
    """What one operator adds to a few rows, on tensors of any kind."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self._programs = -(-operator.r_hat // SQUARE_ROWS)  # of a row of x
        self._launches: dict[tuple[Any, ...], tuple[DirectLaunch, tuple[Tensor, ...]]] = {}

    def add_to(self, y: Tensor, x: Tensor, M: Tensor, scaling: float) -> Tensor:
        """Add to y (..., out_features) what an adapter makes of x (..., in_features), in place, and return y.

        All three are contiguous, each in fp32, bf16 or fp16.
        """
        kind = x.get_device(), x.dtype, M.dtype, y.dtype
        if kind not in self._launches:
            self._launches[kind] = self._launch(x)
        launch, tables = self._launches[kind]
        grid = (x.numel() // self.operator.in_features, self._programs, 1)
        launch(grid, (x, M, y, *tables), (float(scaling),))
        return y

    def _launch(self, x: Tensor) -> tuple[DirectLaunch, tuple[Tensor, ...]]:
        """Return the kernel and what it reads beside x, M and y: the rotation's table, which decouple leaves unread."""
        op = self.operator
        if isinstance(op, Decouple):
            table = rotation_table(op.n_read, op.r_hat, x.device, torch.float32)
            return DirectLaunch(add_blocks, _block_constants(op)), table
        return DirectLaunch(add_shared, _sharing_constants(op)), ()


def _block_constants(op: Decouple) -> dict[str, Any]:
    blocks = op.n_multiplied
    held = max(16, triton.next_power_of_2(blocks))  # 16: what a matrix product of Triton's needs at least
    copies = -(-op.n_blocks_out // blocks)
    return {
        "R": op.r_hat,
        "K": op.in_features,
        "D": op.out_features,
        "BLOCKS": blocks,
        "ROUNDS": -(-op.n_read // blocks),
        "BLOCKS_IN": op.n_read,
        "COPIES": copies,
        "CIRCULAR": op.pad == "circular",
        "TURNS": isinstance(op, Rotation),
        "INTERLEAVED": op.pairs == "interleaved",
        "HELD": held,
        "COLUMNS": max(16, min(128, TILE // 2 // held)),
        "SQUARE_ROWS": SQUARE_ROWS,
        "COPIES_HELD": min(triton.next_power_of_2(copies), max(1, TILE // (held * SQUARE_ROWS))),
    }


def _sharing_constants(op: Operator) -> dict[str, Any]:
    plans = maps(op)
    assert plans is not None
    down, up = plans.compress, plans.decompress_adjoint  # an output of z's element s is what that adjoint sums into s
    columns = min(triton.next_power_of_2(op.r_hat), TILE // 16)

    def constants(plan: Gather, side: str, room: int) -> dict[str, int]:
        held = min(triton.next_power_of_2(plan.terms), room)
        fields = {"LIMIT": plan.limit, "TERMS": plan.terms, "FIRST": plan.first, "LARGER": plan.larger}
        return {f"{name}_{side}": value for name, value in (fields | {"STRIDE": plan.stride, "HELD": held}).items()}

    return {
        "R": op.r_hat,
        "K": op.in_features,
        "D": op.out_features,
        "MODULUS": down.modulus,
        **constants(down, "IN", TILE // columns),
        **constants(up, "OUT", TILE // SQUARE_ROWS),
        "COLUMNS": columns,
        "SQUARE_ROWS": SQUARE_ROWS,
    }


@triton.jit
def _members(
    s, t, R: tl.constexpr, LIMIT: tl.constexpr, TERMS: tl.constexpr, FIRST: tl.constexpr, LARGER: tl.constexpr,
    STRIDE: tl.constexpr,
):  # fmt: skip
    """Where the members t of the groups s lie, (t, s), and which of them there are: `Gather`'s positions."""
    position = (s * FIRST + (tl.minimum(s, LARGER) if LARGER > 0 else 0))[None, :] + t[:, None] * STRIDE
    ok = (s < R)[None, :] & (t < TERMS)[:, None] & (position < LIMIT)
    if LARGER > 0:
        ok = ok & ((t < TERMS - 1)[:, None] | (s < LARGER)[None, :])
    return position, ok


@triton.jit
def add_shared(
    x, M, y, scaling,
    R: tl.constexpr, K: tl.constexpr, D: tl.constexpr, MODULUS: tl.constexpr,
    LIMIT_IN: tl.constexpr, TERMS_IN: tl.constexpr, FIRST_IN: tl.constexpr, LARGER_IN: tl.constexpr,
    STRIDE_IN: tl.constexpr, HELD_IN: tl.constexpr,
    LIMIT_OUT: tl.constexpr, TERMS_OUT: tl.constexpr, FIRST_OUT: tl.constexpr, LARGER_OUT: tl.constexpr,
    STRIDE_OUT: tl.constexpr, HELD_OUT: tl.constexpr,
    COLUMNS: tl.constexpr, SQUARE_ROWS: tl.constexpr,
):  # fmt: skip
    """Sharing: c is the sum of each group of x, z = M c, and each output of a group gets z's element."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * SQUARE_ROWS + tl.arange(0, SQUARE_ROWS)
    z = tl.zeros((SQUARE_ROWS,), tl.float32)
    for k0 in range(0, R, COLUMNS):
        k = k0 + tl.arange(0, COLUMNS)
        c = tl.zeros((COLUMNS,), tl.float32)
        for t0 in range(0, TERMS_IN, HELD_IN):
            t = t0 + tl.arange(0, HELD_IN)
            place, ok = _members(k, t, R, LIMIT_IN, TERMS_IN, FIRST_IN, LARGER_IN, STRIDE_IN)
            if MODULUS > 0:
                place = place % MODULUS
            c += tl.sum(tl.load(x + row * K + place, mask=ok & (place < K), other=0.0).to(tl.float32), 0)
        c = c.to(M.dtype.element_ty).to(tl.float32)
        m_ok = (j < R)[:, None] & (k < R)[None, :]
        m = tl.load(M + j[:, None] * R + k[None, :], mask=m_ok, other=0.0).to(tl.float32)
        z += tl.sum(m * c[None, :], 1)
    for t0 in range(0, TERMS_OUT, HELD_OUT):
        t = t0 + tl.arange(0, HELD_OUT)
        place, ok = _members(j, t, R, LIMIT_OUT, TERMS_OUT, FIRST_OUT, LARGER_OUT, STRIDE_OUT)
        before = tl.load(y + row * D + place, mask=ok, other=0.0).to(tl.float32)
        tl.store(y + row * D + place, (before + z[None, :] * scaling).to(y.dtype.element_ty), mask=ok)


@triton.jit
def _input(x, position, ok, K: tl.constexpr, CIRCULAR: tl.constexpr):
    """x at positions of the padded input, in fp32."""
    if CIRCULAR:
        position = position % K
    return tl.load(x + position, mask=ok & (position < K), other=0.0).to(tl.float32)


@triton.jit
def add_blocks(
    x, M, y, cos, sin, scaling,
    R: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCKS: tl.constexpr, ROUNDS: tl.constexpr, BLOCKS_IN: tl.constexpr, COPIES: tl.constexpr,
    CIRCULAR: tl.constexpr, TURNS: tl.constexpr, INTERLEAVED: tl.constexpr,
    HELD: tl.constexpr, COLUMNS: tl.constexpr, SQUARE_ROWS: tl.constexpr, COPIES_HELD: tl.constexpr,
):  # fmt: skip
    """Decouple and rotation: c^i = R_i x^i, z^i = M c^i; the z^i lie side by side, and are repeated to fill the output.

    Folded blocks are added to c, as `compress` does.
    """
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * SQUARE_ROWS + tl.arange(0, SQUARE_ROWS)
    i = tl.arange(0, HELD)
    z = tl.zeros((HELD, SQUARE_ROWS), tl.float32)
    for k0 in range(0, R, COLUMNS):
        k = k0 + tl.arange(0, COLUMNS)
        c = tl.zeros((HELD, COLUMNS), tl.float32)
        for turn in range(0, ROUNDS):
            block = turn * BLOCKS + i
            ok = ((i < BLOCKS) & (block < BLOCKS_IN))[:, None] & (k < R)[None, :]
            position = block[:, None] * R + k[None, :]
            own = _input(x + row * K, position, ok, K, CIRCULAR)
            if TURNS:
                plane, is_first, to_partner = plane_of(k, R, INTERLEAVED)
                angle = block[:, None] * (R // 2) + plane[None, :]
                other = _input(x + row * K, position + to_partner[None, :], ok, K, CIRCULAR)
                turned = tl.load(sin + angle, mask=ok, other=0.0) * tl.where(is_first, -1.0, 1.0)[None, :]
                own = own * tl.load(cos + angle, mask=ok, other=0.0) + other * turned
            c += own
        m_ok = (k < R)[:, None] & (j < R)[None, :]
        m = tl.load(M + j[None, :] * R + k[:, None], mask=m_ok, other=0.0)
        z = tl.dot(c.to(M.dtype.element_ty), m, z, input_precision="ieee")
    for copy0 in range(0, COPIES, COPIES_HELD):
        copy = copy0 + tl.arange(0, COPIES_HELD)
        place = copy[:, None, None] * (BLOCKS * R) + i[None, :, None] * R + j[None, None, :]
        ok = (copy < COPIES)[:, None, None] & (i < BLOCKS)[None, :, None] & (j < R)[None, None, :] & (place < D)
        before = tl.load(y + row * D + place, mask=ok, other=0.0).to(tl.float32)
        tl.store(y + row * D + place, (before + z[None, :, :] * scaling).to(y.dtype.element_ty), mask=ok)
