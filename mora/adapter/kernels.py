"""The choice of an implementation ("form") of y = W x + b + scaling * f_decomp(M f_comp(x)) for each call.

Formulas are of column vectors, as in the paper. In the code a vector is a row: W x is `x @ weight_DK.T`.

- "fused" (`fused_linear.py`): one autograd function, whose four linear maps are Triton kernels on a GPU. It has the least
  arithmetic and memory traffic.
- "products" (`products.py`), for small models: plain products with f_comp and f_decomp as matrices, fewer launches for more
  arithmetic.
- "auto" chooses for each call: "products" on a GPU if the layer is so small that the time of launches decides, compiled or
  not, else "fused".

The environment variable MORA_KERNELS, or `use(...)`, decides otherwise: "torch", the fused function without Triton;
"reference", the operators composed under autograd; "triton", also on the CPU (with TRITON_INTERPRET=1, for tests). Second
derivatives and torch.func's transforms need "reference" or "products"; the others refuse them.

All but "reference" add the base's bias last. Qwen2.5 has biases of 354, where neighbouring numbers in bf16 are 2 apart. An
update that is added to the rounded sum of W x and b, as PEFT's LoRA adds it, is rounded away there, but not once it is
merged.

Decoding has one row per sequence and no backward pass. In the forms "auto", "fused" and "triton", calls without gradients on
at most DECODING_MAX_ROWS rows use one kernel for all that is added to the base product (`few_rows_kernel.py`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from . import products
from .fused_linear import AdaptedLinear, base_dtype, no_derivative, scaled
from .gather import Maps, maps
from .operators import Operator

if TYPE_CHECKING:
    from .few_rows_kernel import FewRows

Form = Literal["auto", "fused", "products", "torch", "reference", "triton"]
LIGHT = 2**36  # multiply-adds of W x in 2-byte numbers: an H200 computes the layer as fast as a CPU launches "fused"
LARGE = 2**25  # numbers in S and T, 64 MiB in bf16: reading them would cost what "products" saves
DECODING_MAX_ROWS = 16  # most rows of x for which decoding's kernel is used
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_form: Form = os.environ.get("MORA_KERNELS", "auto")  # type: ignore[assignment]
if _form not in get_args(Form):
    raise ValueError(f"MORA_KERNELS={_form!r}: expected one of {', '.join(get_args(Form))}")


@contextmanager
def use(form: Form) -> Iterator[None]:
    """Context manager: forward passes take this form. Their backward passes must be inside the context, too."""
    global _form
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


def is_reference() -> bool:
    return _form == "reference"


def on_triton(x: Tensor) -> bool:
    """Return whether the Triton kernels are to be used on x, as far as that does not depend on an operator."""
    return _form == "triton" or (_form in ("auto", "fused", "products") and x.is_cuda and _has_triton())


def takes_dropout(x: Tensor, operator: Operator) -> bool:
    """Return whether `adapted_linear` draws the dropout of x itself. It does not if its maps run as torch code."""
    return _as_products(x, operator) or _triton_maps(x, operator) is not None


def adapted_linear(
    x: Tensor,
    M: Tensor,
    operator: Operator,
    scaling: float = 1.0,
    weight_DK: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return W x + b + scaling * f_decomp(M f_comp(x)) (Eq. 2) for every row of x, with gradients for x and M alone.

    Args:
        x: The input, (..., in_features).
        M: The trainable matrix, (r_hat, r_hat). Its gradient has its dtype.
        operator: f_comp and f_decomp for this shape of layer.
        scaling: Factor of the adapter's part.
        weight_DK: The frozen base weight W, (out_features, in_features). None leaves out the base's part, W x + b.
        bias: The frozen base bias b, (out_features,). Used only beside `weight_DK`. None adds nothing.
        dropout: Probability with which an element of the adapter's input is zeroed; the base's input stays whole. Only
            where `takes_dropout`.
        dtype: Of f_comp(x) and its product with M. By default M's.

    Returns:
        y, (..., out_features): in the dtype of a linear module's output for x (autocast's where it is on), without
        `weight_DK` in `dtype`.

    Raises:
        RuntimeError: A gradient is differentiated again, or the call is in a transform of torch.func, and its form is not
            "products".
    """
    if not dropout and (kernel := _decoding_kernel(x, M, weight_DK, operator, dtype or M.dtype)):
        if weight_DK is None:
            return kernel.add_to(x.new_zeros(*x.shape[:-1], operator.out_features, dtype=M.dtype), x, M, scaling)
        y = kernel.add_to(F.linear(x, weight_DK), x, M, scaling)
        return y if bias is None else y.add_(bias)
    if _as_products(x, operator):
        return products.adapted_linear(x, scaled(M, dtype or M.dtype, scaling), operator, weight_DK, bias, dropout)
    if _is_transformed():
        raise RuntimeError(no_derivative(operator))
    drop = None
    if dropout:
        from .gather_kernel import Dropout

        # Drawn on the device: torch.manual_seed, checkpointing and graph capture all govern it as they do nn.Dropout.
        drop = Dropout(dropout, torch.randint(-(2**63), 2**63 - 1, (1,), device=x.device))
    triton = _triton_maps(x, operator)
    return AdaptedLinear.apply(x, M, weight_DK, bias, operator, triton, scaling, dtype or M.dtype, drop)


def _as_products(x: Tensor, operator: Operator) -> bool:
    """Return whether this call takes the form "products"."""
    if _form != "auto" or not x.is_cuda:
        return _form == "products"
    slower = 1 if x.itemsize == 2 else 8  # the factor by which an H100 is slower in fp32
    base = x.numel() * operator.out_features * slower
    return base < LIGHT and products.size(operator) < LARGE


def _decoding_kernel(
    x: Tensor, M: Tensor, weight_DK: Tensor | None, operator: Operator, dtype: torch.dtype
) -> FewRows | None:
    """Return the kernel that adds the adapter's part in place, for few rows without a backward pass; None otherwise."""
    if torch.is_grad_enabled() or _form == "products" or not _launches(x):
        return None
    if x.numel() > DECODING_MAX_ROWS * operator.in_features:
        return None
    fits = (
        (weight_DK is None or x.dtype == weight_DK.dtype == base_dtype(x))
        and M.dtype == dtype
        and dtype in TRITON_DTYPES
        and x.is_contiguous()
        and M.is_contiguous()
    )
    return _few_rows(operator) if fits else None


@functools.lru_cache(maxsize=1024)
def _few_rows(operator: Operator) -> FewRows | None:
    from .few_rows_kernel import few_rows

    return few_rows(operator)


def _triton_maps(x: Tensor, operator: Operator) -> Maps | None:
    return maps(operator) if _launches(x) else None


def _launches(x: Tensor) -> bool:
    """Return whether this call may launch Triton kernels on x. Compilers, tracers and transforms cannot look into them."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_transformed():
        return False
    if type(x) not in (Tensor, torch.nn.Parameter) or not on_triton(x):
        return False
    return x.dtype in TRITON_DTYPES and x.numel() > 0


def _is_transformed() -> bool:
    """Return whether this is inside a transform of torch.func, such as grad or vmap."""
    return torch._C._are_functorch_transforms_active()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
