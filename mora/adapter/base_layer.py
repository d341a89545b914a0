"""The base layer of a MoRA layer: whether MoRA can adapt it, its size, and its weight."""

from __future__ import annotations

from typing import Any

from peft.utils import resolve_quantization_backend
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

PLAIN = (Tensor, nn.Parameter, FakeTensor, DTensor)


def quantisation_of(module: nn.Module, **options: object) -> QuantizationBackend | None:
    """Return PEFT's backend for a quantised linear module; None for one in floating point.

    Args:
        module: The module.
        **options: What `peft.utils.get_quantization_kwargs(model)` returns.

    Raises:
        TypeError: It is no linear module, or is quantised in a way that PEFT does not know, even if it reports a
            floating-point dtype. The message names its class.
    """
    weight = getattr(module, "weight", None)
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    backend = resolve_quantization_backend(module, **options)
    if backend is not None and backend.layer_type == "linear":
        return backend
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise TypeError(
            f"MoRA adapts torch.nn.Linear and transformers Conv1D, not {name}: leave it out of target_modules"
        )
    assert weight is not None
    is_float = weight.dtype.is_floating_point and weight.dtype.itemsize >= 2  # fp8 counts as floating point
    if not is_float or type(weight) not in PLAIN:
        raise TypeError(
            f"MoRA does not adapt these quantised modules, got {name} with a weight of {type(weight).__name__}, "
            f"{weight.dtype}: load the base model in bf16, fp16 or fp32, or quantise it with bitsandbytes, torchao or HQQ"
        )
    return None


def stored_weight(module: nn.Module) -> Tensor | None:
    """Return the weight of a module if it keeps what is written into it.

    None if it is computed from other tensors, as by weight_norm, pruning or a parametrisation.
    """
    parameter: Tensor | None = module._parameters.get("weight")
    return module._buffers.get("weight") if parameter is None else parameter


def linear_shape(module: Any) -> tuple[int, int]:
    """Return in_features and out_features of a module that MoRA can adapt, also if DeepSpeed has split its weight."""
    if isinstance(module, Conv1D):
        in_features, out_features = getattr(module.weight, "ds_shape", module.weight.shape)
        return in_features, out_features
    return module.in_features, module.out_features
