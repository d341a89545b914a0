"""The non-parameter operators of MoRA: f_comp, f_decomp and the delta_weight they imply (arXiv:2405.12130, section 4).

    x_K   input of a layer             K = in_features  (the paper's k)
    y_D   what the adapter adds        D = out_features (the paper's d)
    M_RR  the trainable square matrix  R = r_hat
    n     number of blocks of r_hat inputs that M acts on

Every operator keeps Eq. 3, `decompress(compress(x) @ M.T) == x @ delta_weight(M).T`, for any leading dimensions of x and
any dtype. `delta_weight` is built from the same pieces as the forward pass: `_pad` and `_fold_pad`, `_sum_groups` and
`_spread_groups`, `_sum_rounds` and `_repeat_rounds`, `_rotate` by +angle and by -angle are pairs of a linear map and its
adjoint, so that only the place of a block in the output is said twice.
The adjoints of whole maps, which the backward pass of `fused_linear.py` uses, are put together from the same pairs.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mora.choices import Groups, Overflow, Pad, Pairs, Split


@dataclass(frozen=True)
class Operator:
    """f_comp and f_decomp for one shape of layer. Holds no tensor, so it can be pickled, compared and used as a key.

    in_blocks: M acts on several blocks of inputs, so that the rank of delta_weight can exceed r_hat.
    """

    in_blocks: ClassVar[bool] = False

    in_features: int
    out_features: int
    r_hat: int
    pad: Pad = "circular"
    groups: Groups = "modulo"
    split: Split = "uneven"
    pairs: Pairs = "half_split"
    overflow: Overflow = "drop"

    def __post_init__(self) -> None:
        limit = min(self.in_features, self.out_features)
        if not 1 <= self.r_hat <= limit:
            raise ValueError(
                f"r_hat={self.r_hat} is outside 1..{limit} for a layer of in_features={self.in_features}, "
                f"out_features={self.out_features}: lower r"
            )

    def compress(self, x: Tensor) -> Tensor:
        """Apply f_comp: (..., in_features) -> (..., r_hat), or (..., n, r_hat) for operators that work on blocks."""
        raise NotImplementedError

    def decompress(self, z: Tensor) -> Tensor:
        """Apply f_decomp to what `compress` returns after multiplication by M: -> (..., out_features)."""
        raise NotImplementedError

    def compress_adjoint(self, c: Tensor) -> Tensor:
        """Apply the transpose of `compress`: from what that returns to (..., in_features)."""
        raise NotImplementedError

    def decompress_adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose of `decompress`: from (..., out_features) to what `compress` returns."""
        raise NotImplementedError

    def delta_weight(self, M: Tensor) -> Tensor:
        """Return the ΔW of Eq. 3: (r_hat, r_hat) -> (out_features, in_features), in the dtype of M."""
        raise NotImplementedError

    def ignored_inputs(self) -> int:
        """Return how many input dimensions can never change the output, whatever M is."""
        return 0


class Truncation(Operator):
    """Eq. 4 and 5: M acts on the first r_hat inputs and writes the first r_hat outputs."""

    def compress(self, x: Tensor) -> Tensor:
        return x[..., : self.r_hat]

    def decompress(self, z: Tensor) -> Tensor:
        return torch.nn.functional.pad(z, (0, self.out_features - self.r_hat))

    def compress_adjoint(self, c: Tensor) -> Tensor:
        return torch.nn.functional.pad(c, (0, self.in_features - self.r_hat))

    def decompress_adjoint(self, y: Tensor) -> Tensor:
        return y[..., : self.r_hat]

    def delta_weight(self, M: Tensor) -> Tensor:
        return torch.nn.functional.pad(M, (0, self.in_features - self.r_hat, 0, self.out_features - self.r_hat))

    def ignored_inputs(self) -> int:
        return self.in_features - self.r_hat


class Sharing(Operator):
    """Eq. 6 and 7: the inputs of a group are summed, and the outputs of a group share a row of M.

    Appendix B names two kinds of groups. "modulo": indices that are equal modulo r_hat (Algorithm 1, type 0; official
    type 1). "contiguous": neighbouring indices (type 1; official type 2). A pair "in-out" mixes them, as official types 3
    and 4 do.

    ΔW[i, j] = M[g'(i), g(j)] (Eq. 7), with the groups g of inputs and g' of outputs. An input that circular padding repeats
    belongs to two groups, and its column of ΔW is the sum of both.
    """

    def compress(self, x: Tensor) -> Tensor:
        padded = _pad(x, self.padded_length, self.pad)
        return _sum_groups(padded, self.padded_length, self.r_hat, self.kind_in)

    def decompress(self, z: Tensor) -> Tensor:
        return _spread_groups(z, self.out_features, self.r_hat, self.kind_out, self.split)

    def compress_adjoint(self, c: Tensor) -> Tensor:
        columns = _spread_groups(c, self.padded_length, self.r_hat, self.kind_in, self.split)
        return _fold_pad(columns, self.in_features, self.pad)

    def decompress_adjoint(self, y: Tensor) -> Tensor:
        uneven = self.kind_out == "contiguous" and self.split == "uneven"
        length = self.out_features if uneven else math.ceil(self.out_features / self.r_hat) * self.r_hat
        return _sum_groups(_pad(y, length, "zeros"), length, self.r_hat, self.kind_out)

    def delta_weight(self, M: Tensor) -> Tensor:
        return self.decompress(self.compress_adjoint(M).mT).mT

    @property
    def kind_in(self) -> str:
        return self.groups.split("-")[0]

    @property
    def kind_out(self) -> str:
        return self.groups.split("-")[-1]

    @property
    def padded_length(self) -> int:
        """How many inputs the groups hold, padding included."""
        if self.kind_in == "contiguous" and self.split == "uneven":
            return self.in_features
        return math.ceil(self.in_features / self.r_hat) * self.r_hat


class Decouple(Operator):
    """Eq. 8: M acts on each block of r_hat inputs separately, so ΔW is block diagonal.

    A layer with fewer outputs than inputs has blocks beyond its output. They are dropped, as in the official code, or added
    to the first ones ("fold"), in f_comp: M is linear, and acts on as many blocks as the output holds. A layer with more
    outputs than inputs repeats the products.

    ΔW consists of the blocks P^(i mod n_read), of rows i mod n_blocks_out and columns i mod n_read, for every i from 0 below
    the larger of n_blocks_out and n_read. Rows beyond the output are cut, and padded columns added to those of their
    inputs. Here P^i = M.
    """

    in_blocks = True

    @property
    def n_blocks(self) -> int:
        return math.ceil(self.in_features / self.r_hat)

    @property
    def n_blocks_out(self) -> int:
        return math.ceil(self.out_features / self.r_hat)

    @property
    def n_multiplied(self) -> int:
        """How many blocks `compress` returns, and M acts on."""
        return min(self.n_blocks, self.n_blocks_out)

    @property
    def n_read(self) -> int:
        """How many blocks of the input `compress` reads."""
        return self.n_blocks if self.overflow == "fold" else self.n_multiplied

    def compress(self, x: Tensor) -> Tensor:
        padded = _pad(x[..., : self.n_read * self.r_hat], self.n_read * self.r_hat, self.pad)
        blocks = self._rotate(padded.unflatten(-1, (self.n_read, self.r_hat)), sign=1)
        return _sum_rounds(blocks, self.n_multiplied).to(x.dtype)

    def decompress(self, z: Tensor) -> Tensor:
        return _repeat_rounds(z, self.n_blocks_out).flatten(-2)[..., : self.out_features]

    def compress_adjoint(self, c: Tensor) -> Tensor:
        columns = self._rotate(_repeat_rounds(c, self.n_read), sign=-1).flatten(-2)
        return _fold_pad(columns, self.in_features, self.pad).to(c.dtype)

    def decompress_adjoint(self, y: Tensor) -> Tensor:
        padded = _pad(y, self.n_blocks_out * self.r_hat, "zeros")
        return _sum_rounds(padded.unflatten(-1, (self.n_blocks_out, self.r_hat)), self.n_multiplied)

    def block_matrices(self, M: Tensor) -> Tensor:
        """Return P^i, one matrix per block that is read: (n_read, r_hat, r_hat)."""
        rows = M.unsqueeze(-2).expand(-1, self.n_read, -1)  # row a of every P^i is R_i^T M[a]
        return self._rotate(rows, sign=-1).transpose(0, 1).to(M.dtype)

    def delta_weight(self, M: Tensor) -> Tensor:
        n, R, blocks = self.n_read, self.r_hat, self.block_matrices(M)
        delta = M.new_zeros(self.out_features, self.n_blocks * R)
        for i in range(max(n, self.n_blocks_out)):  # block by block: merging takes seconds
            rows = slice(i % self.n_blocks_out * R, min((i % self.n_blocks_out + 1) * R, self.out_features))
            delta[rows, i % n * R : (i % n + 1) * R] = blocks[i % n, : rows.stop - rows.start]
        return _fold_pad(delta, self.in_features, self.pad)

    def ignored_inputs(self) -> int:
        return max(0, self.in_features - self.n_read * self.r_hat)

    def _rotate(self, blocks: Tensor, sign: int) -> Tensor:
        """Turn blocks (..., n, r_hat). Here they stay as they are."""
        return blocks


class Rotation(Decouple):
    """Eq. 9 to 11: as Decouple, with block i of the input rotated by its own angles: a^i = R_i x^i and P^i = M R_i."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r_hat % 2:
            raise ValueError(f"rotation turns pairs of inputs, so r_hat must be even: got r_hat={self.r_hat}")

    def _rotate(self, blocks: Tensor, sign: int) -> Tensor:
        """Return blocks (..., n, r_hat), the i-th turned by sign * i * theta_j in its j-th plane, in fp32 or wider."""
        dtype = torch.promote_types(blocks.dtype, torch.float32)
        # One cache serves the whole process, so what a tracer makes (torch.export's FakeTensor, say) must stay out of it.
        table = constant_rotation_table if type(blocks) is Tensor else rotation_table.__wrapped__
        cos, sin = table(blocks.shape[-2], self.r_hat, blocks.device, dtype)
        sin = sign * sin
        if self.pairs == "half_split":
            a, b = blocks.chunk(2, dim=-1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        a, b = blocks[..., 0::2], blocks[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


OPERATORS: dict[str, type[Operator]] = {
    "truncation": Truncation,
    "sharing": Sharing,
    "decouple": Decouple,
    "rotation": Rotation,
}


@functools.lru_cache(maxsize=256)
def rotation_table(n_blocks: int, r_hat: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of i * theta_j, theta_j = 10000^(-2 (j - 1) / r_hat) (Eq. 10, 11): two (n_blocks, r_hat / 2) tensors.

    Blocks are counted from i = 0, as in the official code, so the first block is not turned. Computed in fp64, then cast.
    """
    with torch.inference_mode(False):  # a cached inference tensor would break the next training step
        theta = 10000.0 ** (-torch.arange(0, r_hat, 2, dtype=torch.float64) / r_hat)
        angle = torch.outer(torch.arange(n_blocks, dtype=torch.float64), theta)
        return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


@torch.compiler.assume_constant_result  # it would be made in the graph, for each layer and step
def constant_rotation_table(*key: Any) -> tuple[Tensor, Tensor]:
    return rotation_table(*key)


def _pad(x: Tensor, length: int, pad: Pad) -> Tensor:
    """(..., K) -> (..., length): with the first inputs once more ("circular", the official code) or with zeros."""
    missing = length - x.shape[-1]
    if missing == 0:
        return x
    if pad == "zeros":
        return torch.nn.functional.pad(x, (0, missing))
    return torch.cat((x, x[..., :missing]), dim=-1)


def _fold_pad(columns: Tensor, length: int, pad: Pad) -> Tensor:
    """Adjoint of `_pad` on the last dimension: padded columns go back to where their input came from.

    Inputs that were never read get zeros.
    """
    extra = columns.shape[-1] - length
    if extra <= 0:
        return torch.nn.functional.pad(columns, (0, -extra))
    if pad == "zeros":
        return columns[..., :length]
    folded = columns[..., :length].clone()
    folded[..., :extra] += columns[..., length:]
    return folded


def _sum_rounds(blocks: Tensor, n: int) -> Tensor:
    """(..., m, r_hat) -> (..., n, r_hat): block i is added to block i mod n."""
    rounds = math.ceil(blocks.shape[-2] / n)
    if rounds == 1:
        return blocks
    padded = torch.nn.functional.pad(blocks, (0, 0, 0, rounds * n - blocks.shape[-2]))
    return padded.unflatten(-2, (rounds, n)).sum(-3)


def _repeat_rounds(blocks: Tensor, n: int) -> Tensor:
    """Adjoint of `_sum_rounds`: (..., m, r_hat) -> (..., n, r_hat), block i is block i mod m."""
    rounds = math.ceil(n / blocks.shape[-2])
    return blocks if rounds == 1 else blocks.repeat(*[1] * (blocks.dim() - 2), rounds, 1)[..., :n, :]


def _sum_groups(x: Tensor, length: int, r_hat: int, kind: str) -> Tensor:
    """Eq. 6, f_comp: (..., length) -> (..., r_hat), the sum over each group."""
    size, larger = divmod(length, r_hat)  # not of x.shape, which is no int under torch.jit.trace
    if kind == "modulo":
        return x.unflatten(-1, (size, r_hat)).sum(-2)
    head, tail = x[..., : larger * (size + 1)], x[..., larger * (size + 1) :]
    sums = tail.unflatten(-1, (r_hat - larger, size)).sum(-1)
    if larger == 0:
        return sums
    return torch.cat((head.unflatten(-1, (larger, size + 1)).sum(-1), sums), dim=-1)


def _spread_groups(z: Tensor, length: int, r_hat: int, kind: str, split: Split) -> Tensor:
    """Eq. 6, f_decomp: (..., r_hat) -> (..., length), every index of a group gets the group's value."""
    size, larger = divmod(length, r_hat)
    if kind == "modulo":
        copies = math.ceil(length / r_hat)
        return z.unsqueeze(-2).expand(*z.shape[:-1], copies, r_hat).flatten(-2)[..., :length]
    if split == "padded":
        return _repeat_each(z, math.ceil(length / r_hat))[..., :length]
    if larger == 0:
        return _repeat_each(z, size)
    return torch.cat((_repeat_each(z[..., :larger], size + 1), _repeat_each(z[..., larger:], size)), dim=-1)


def _repeat_each(z: Tensor, times: int) -> Tensor:
    return z.unsqueeze(-1).expand(*z.shape, times).flatten(-2)
