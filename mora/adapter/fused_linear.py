"""y = W x + b + scaling * f_decomp(M f_comp(x)) in one autograd function: the fast form of what `operators.py` defines.

What it saves, against composing the operators under autograd:

- Memory: backward keeps f_comp(x) where it is smaller than x, else x, which q, k and v share, and nothing else. Rotated
  blocks are then made again from x.
- Passes: f_decomp writes the output first and the base product is accumulated onto it (a matrix product with beta = 1);
  the gradient of x likewise. So nothing of the size of x or y is ever added in a pass of its own.
- Blocks that lie in x and y as they are (rotation where r_hat divides both widths, as in LLaMA-2's attention at r=8) are
  not copied at all: the rotation goes into M, P^i = M R_i, and a batched product reads x and writes y.
- Padding: r_hat is padded to a multiple of 8 in what is compressed and in a copy of M, so that cuBLAS keeps its fast
  kernels. The copy is made in the compute dtype, in forward and again in backward; M itself stays exact.

The four linear maps run as Triton kernels (`gather_kernel.py`) where `maps` are given; without them, as on a CPU and under
torch.compile, which fuses by itself and could not look into a kernel, they are the operators' own torch code. Everything
is allocated by shape alone and nothing asks the device for a value, so a step may be captured in a CUDA graph once it has
run.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mora.sizes import aligned

from .gather import Gather, Maps
from .operators import Operator

if TYPE_CHECKING:
    from .gather_kernel import Dropout

CHUNK_BYTES = 16 * 2**20  # of compressed blocks: they and their product with M stay in the L2 cache of an H100 (50 MB)
MULTIPROCESSORS = 132  # of an H100: how many tiles a matrix product should have


class AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        M: Tensor,
        weight_DK: Tensor | None,
        bias: Tensor | None,
        operator: Operator,
        maps: Maps | None,
        scaling: float,
        dtype: torch.dtype,
        dropout: Dropout | None,
    ) -> Tensor:
        """Return y. Without `maps`, the operator's kernels, it is computed by torch code."""
        x2 = x.reshape(-1, operator.in_features)
        y_dtype = dtype if weight_DK is None else base_dtype(x)
        c = blocks = None
        if maps is None:
            c = operator.compress(x2.to(dtype))
            y = operator.decompress(F.linear(c, scaled(M, dtype, scaling))).to(y_dtype)
            is_smaller = c.numel() * c.itemsize < x.numel() * x.itemsize
            c = c.contiguous() if is_smaller else None  # truncation's, or decouple's, may be a view that keeps all of x
        else:
            x2 = _with_contiguous_rows(x2)
            blocks = maps.block_matrices if dropout is None and x.dtype == dtype == y_dtype else None
            if blocks is not None:
                y = _forward_in_blocks(x2, M, operator, blocks, scaling)
            else:
                c, y = _forward_triton(x2, M, operator, maps, scaling, dtype, y_dtype, dropout)
        if weight_DK is not None:
            y = _plus_product(y, x2.to(y_dtype), weight_DK.to(y_dtype).mT, in_place=maps is not None)
            if bias is not None:
                y += bias
        ctx.save_for_backward(x if c is None else c, M, weight_DK, dropout.seed if dropout else None)
        ctx.keeps_c, ctx.maps, ctx.in_blocks = c is not None, maps, blocks is not None
        ctx.operator, ctx.scaling, ctx.dtype = operator, scaling, dtype
        ctx.shape, ctx.x_dtype, ctx.dropout = x.shape, x.dtype, dropout and dropout.p
        # No view: autograd forbids in-place operations, an activation's say, on a view that a function of ours returns.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], operator.out_features))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: gradient checkpointing gives them out no second time
        with torch.no_grad():
            dx, dM = _gradients(ctx, saved, grad_y)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # with create_graph=True
            kept, M, *_ = saved
            dx, dM = (
                None if g is None else _DifferentiableOnce.apply(g, ctx.operator, grad_y, M, kept) for g in (dx, dM)
            )
        return dx, dM, None, None, None, None, None, None, None


class _DifferentiableOnce(torch.autograd.Function):
    """The identity on a gradient. Differentiating it again raises: how f_comp(x) depends on x is not kept."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, operator: Operator, *depends_on: Tensor) -> Tensor:
        ctx.operator = operator
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(no_derivative(ctx.operator))


def no_derivative(operator: Operator) -> str:
    """Return what a layer's user is told who asks for a derivative that `AdaptedLinear` does not have."""
    kind = type(operator).__name__.lower()
    return (
        f"the MoRA layer {operator.in_features} -> {operator.out_features} ({kind}, r_hat={operator.r_hat}) is computed by "
        "a fused function, which has neither second derivatives nor torch.func's transforms: set MORA_KERNELS=reference, "
        "or enclose forward and backward passes in mora.adapter.kernels.use('reference')"
    )


def _gradients(
    ctx: Any, saved: tuple[Tensor, Tensor, Tensor | None, Tensor | None], grad_y: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and M, each if it is needed."""
    kept, M, weight_DK, seed = saved
    operator, (needs_x, needs_M, *_) = ctx.operator, ctx.needs_input_grad
    g = grad_y.reshape(-1, operator.out_features)
    x_or_c = kept if ctx.keeps_c else kept.reshape(-1, operator.in_features)
    x_dtype = ctx.x_dtype if weight_DK is None else g.dtype
    if ctx.maps is not None:
        g, x_or_c = _with_contiguous_rows(g), _with_contiguous_rows(x_or_c)
        if ctx.in_blocks:
            dx, dM = _backward_in_blocks(ctx, g, x_or_c, M)
        else:
            dx, dM = _backward_triton(ctx, g, x_or_c, M, x_dtype, seed)
    else:
        dz = operator.decompress_adjoint(g.to(ctx.dtype))
        dx = dM = None
        if needs_x:
            dx = operator.compress_adjoint(dz @ scaled(M, ctx.dtype, ctx.scaling)).to(x_dtype)
        if needs_M:
            c = x_or_c if ctx.keeps_c else operator.compress(x_or_c.to(ctx.dtype))
            dM = scaled(_outer(dz, c), M.dtype, ctx.scaling)
    if dx is not None and weight_DK is not None:
        dx = _plus_product(dx, g, weight_DK.to(g.dtype), in_place=ctx.maps is not None)
    if dx is not None:
        dx = dx.to(ctx.x_dtype).view(ctx.shape)
    return dx, dM


def base_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a linear module's output for x: that of autocast if it is on and x is not fp64."""
    return x.dtype if x.dtype == torch.float64 else autocast_dtype(x) or x.dtype


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype of autocast where it is on for x's device, else None. The meta device has no autocast to ask for."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if not x.is_meta and torch.is_autocast_enabled(device) else None


def _plus_product(y: Tensor, a: Tensor, b: Tensor, in_place: bool) -> Tensor:
    """y + a b, rounded once."""
    if in_place:  # which autocast leaves alone
        return y.addmm_(a, b)
    with torch.autocast(y.device.type, enabled=False) if autocast_dtype(y) else nullcontext():
        return torch.addmm(y, a, b)


def scaled(M: Tensor, dtype: torch.dtype, scaling: float) -> Tensor:
    """scaling * M, rounded to `dtype` before it is scaled."""
    M = M if M.dtype == dtype else M.to(dtype)
    return M if scaling == 1.0 else M * scaling


def _outer(dz: Tensor, c: Tensor) -> Tensor:
    """Return the sum over rows (and blocks) of the outer products of dz and c: (R, R)."""
    return dz.flatten(0, -2).mT @ c.flatten(0, -2)


# --- on a GPU --------------------------------------------------------------------------------------------------------


def _forward_triton(
    x: Tensor,
    M: Tensor,
    operator: Operator,
    maps: Maps,
    scaling: float,
    dtype: torch.dtype,
    y_dtype: torch.dtype,
    dropout: Dropout | None,
) -> tuple[Tensor | None, Tensor]:
    """f_comp(x) where it is smaller than x, else None, and f_decomp(M f_comp(x)); x and what is returned have rows."""
    from .gather_kernel import run

    side, rows, width = aligned(operator.r_hat), x.shape[0], maps.compress.width
    M = _aligned_square(M, side, dtype, scaling)
    y = x.new_empty(rows, operator.out_features, dtype=y_dtype)
    size = _rows_of_a_part(rows, width * dtype.itemsize, maps.n_blocks)
    keeps_c = width * dtype.itemsize < x.shape[1] * x.itemsize
    c_all = x.new_empty(rows, width, dtype=dtype) if keeps_c else None
    c_parts = _parts(c_all, size) if c_all is not None else None
    for i, (x_part, y_part) in enumerate(zip(_parts(x, size), _parts(y, size), strict=True)):
        c = c_parts[i] if c_parts is not None else x.new_empty(x_part.shape[0], width, dtype=dtype)
        run(maps.compress, x_part, c, dropout, i * size)
        z = F.linear(c.view(-1, side), M)
        run(maps.decompress, z.view(-1, width), y_part)
    return c_all, y


def _backward_triton(
    ctx: Any, g: Tensor, x_or_c: Tensor, M: Tensor, x_dtype: torch.dtype, seed: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    from .gather_kernel import Dropout, run

    maps, dtype, (needs_x, needs_M, *_) = ctx.maps, ctx.dtype, ctx.needs_input_grad
    dropout = None if seed is None else Dropout(ctx.dropout, seed)
    R, rows, width = ctx.operator.r_hat, g.shape[0], maps.compress.width
    side = aligned(R)
    square = _aligned_square(M, side, dtype, ctx.scaling) if needs_x else M
    size = _rows_of_a_part(rows, width * dtype.itemsize, maps.n_blocks)
    dx = g.new_empty(rows, ctx.operator.in_features, dtype=x_dtype) if needs_x else None
    dx_parts = _parts(dx, size) if dx is not None else None
    dM: Tensor | None = None
    for i, (g_part, c) in enumerate(zip(_parts(g, size), _parts(x_or_c, size), strict=True)):
        shape = (g_part.shape[0], width)
        dz = run(maps.decompress_adjoint, g_part, g.new_empty(shape, dtype=dtype)).view(-1, side)
        if dx_parts is not None:
            run(maps.compress_adjoint, (dz @ square).view(shape), dx_parts[i], dropout, i * size)
        if needs_M:
            if not ctx.keeps_c:
                c = run(maps.compress, c, g.new_empty(shape, dtype=dtype), dropout, i * size)
            term = _split_outer(dz, c.view(-1, side))
            dM = term if dM is None else dM.add_(term)
    if dM is not None:
        dM = scaled(dM if side == R else dM[:R, :R], M.dtype, ctx.scaling)
    return dx, dM


def _forward_in_blocks(x: Tensor, M: Tensor, operator: Operator, matrices: Gather, scaling: float) -> Tensor:
    """y^i = P^i x^i for all blocks in one batched product, which reads x and writes y where they are."""
    y = x.new_empty(x.shape[0], operator.out_features)
    P = _block_matrices(M, operator, matrices, x.dtype, scaling)
    torch.bmm(_as_blocks(x, operator), P.mT, out=_as_blocks(y, operator))
    return y


def _backward_in_blocks(ctx: Any, g: Tensor, x: Tensor, M: Tensor) -> tuple[Tensor | None, Tensor | None]:
    from .gather_kernel import run

    operator, R, (needs_x, needs_M, *_) = ctx.operator, ctx.operator.r_hat, ctx.needs_input_grad
    dx = dM = None
    if needs_x:
        dx = g.new_empty(g.shape[0], operator.in_features)
        P = _block_matrices(M, operator, ctx.maps.block_matrices, ctx.dtype, ctx.scaling)
        torch.bmm(_as_blocks(g, operator), P, out=_as_blocks(dx, operator))
    if needs_M:
        dP = torch.bmm(_as_blocks(g, operator).mT, _as_blocks(x, operator)).transpose(0, 1).reshape(R, -1)
        dM = run(ctx.maps.block_matrices_adjoint, dP, dP.new_empty(R, R, dtype=torch.float32))
        dM = scaled(dM, M.dtype, ctx.scaling)
    return dx, dM


def _block_matrices(M: Tensor, operator: Operator, matrices: Gather, dtype: torch.dtype, scaling: float) -> Tensor:
    """scaling * P^i, (n, R, R), turned in fp32 and rounded once to `dtype`."""
    from .gather_kernel import run

    M = _at_aligned_address(_with_contiguous_rows(M))
    P = run(matrices, M, M.new_empty(M.shape[0], operator.in_features, dtype=dtype))
    return _as_blocks(scaled(P, dtype, scaling), operator)


def _as_blocks(x: Tensor, operator: Operator) -> Tensor:
    """(rows, n R) seen as (n, rows, R)."""
    return x.view(x.shape[0], -1, operator.r_hat).transpose(0, 1)


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _aligned_square(M: Tensor, side: int, dtype: torch.dtype, scaling: float) -> Tensor:
    """scaling * M in `dtype`, with zeros up to (side, side)."""
    square, missing = scaled(M, dtype, scaling), side - M.shape[0]
    return F.pad(square, (0, missing, 0, missing)) if missing else _at_aligned_address(square)


def _at_aligned_address(M: Tensor) -> Tensor:
    """M, or a copy where its address is no multiple of 16.

    DeepSpeed lays parameters end to end, so an M of odd size moves all that follow. For such addresses cuBLAS has other,
    slower kernels, which round in another way: results would depend on how a run is spread over ranks.
    """
    return M if M.data_ptr() % 16 == 0 else M.clone()


def _rows_of_a_part(rows: int, row_bytes: int, n_blocks: int) -> int:
    """Equal parts of about CHUNK_BYTES. Sharing is one part: it compresses, so there is little to keep in the cache."""
    return rows if n_blocks == 1 else -(-rows // max(1, round(rows * row_bytes / CHUNK_BYTES)))


def _parts(x: Tensor, size: int) -> tuple[Tensor, ...]:
    return (x,) if size == x.shape[0] else x.split(size)


def _split_outer(dz: Tensor, c: Tensor) -> Tensor:
    """dz^T c in fp32. Few outputs and many rows: split over the rows, so that every multiprocessor has work."""
    rows, side = dz.shape
    tiles = (-(-side // 128)) ** 2
    splits = 1
    while 2 * splits * tiles <= MULTIPROCESSORS and rows // (2 * splits) >= 512:
        splits *= 2
    rest = rows % splits
    dz_whole, c_whole = (dz, c) if rest == 0 else (dz[:-rest], c[:-rest])
    total = torch.bmm(dz_whole.view(splits, -1, side).mT, c_whole.view(splits, -1, side)).sum(0, dtype=torch.float32)
    return total.add_(dz[-rest:].mT @ c[-rest:]) if rest else total
