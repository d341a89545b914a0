"""The MoRA layer: a linear module with y = W x + scaling * f_decomp(M f_comp(x)) (Eq. 2 of arXiv:2405.12130)."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from . import kernels
from .config import MoraConfig
from .operators import OPERATORS, Groups, Operator, square_size


class MoraLayer(BaseTunerLayer):
    """State of the adapters on one module: for each name a square `mora_M`, an operator, a dropout and a scaling."""

    adapter_layer_names = ("mora_M",)
    other_param_names = ("r", "operator", "scaling", "mora_dropout")

    def __init__(self, base_layer: nn.Module) -> None:
        self.base_layer = base_layer
        self.r: dict[str, int] = {}
        self.operator: dict[str, Operator] = {}
        self.scaling: dict[str, float] = {}
        self.mora_dropout = nn.ModuleDict({})
        self.mora_M = nn.ParameterDict({})
        self._disable_adapters = False
        self.merged_adapters = []
        self.in_features, self.out_features = linear_shape(self.get_base_layer())

    def update_layer(self, adapter_name: str, r: int, config: MoraConfig, inference_mode: bool = False) -> None:
        """Adds an adapter, or replaces the one of that name. `config.operator` must be resolved. M starts at zero."""
        operator = self._make_operator(r, config)
        self.r[adapter_name] = r
        self.operator[adapter_name] = operator
        self.scaling[adapter_name] = 1.0  # MoRA has no alpha
        self.mora_dropout[adapter_name] = nn.Dropout(config.mora_dropout) if config.mora_dropout else nn.Identity()
        self.mora_M[adapter_name] = nn.Parameter(torch.empty(operator.r_hat, operator.r_hat))
        self.reset_mora_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _make_operator(self, r: int, config: MoraConfig) -> Operator:
        even = config.operator == "rotation"
        wanted = square_size(self.in_features, self.out_features, r, config.rhat_rounding, even)
        limit = min(self.in_features, self.out_features)
        if even and limit < 2:
            raise ValueError(
                f"operator='rotation' turns pairs of inputs, which a layer of in_features={self.in_features}, out_features="
                f"{self.out_features} has no room for: leave it out of target_modules, or use operator='sharing'"
            )
        r_hat = min(wanted, limit // 2 * 2 if even else limit)
        if r_hat < wanted:
            warnings.warn(
                f"MoRA r={r} asks for r_hat={wanted} on a layer of in_features={self.in_features}, out_features="
                f"{self.out_features}; r_hat is clamped to {r_hat}, so M has {r_hat**2:,} parameters where LoRA of the "
                f"same r has {(self.in_features + self.out_features) * r:,}. Lower r, or give this module its own r in "
                "rank_pattern.",
                stacklevel=2,
            )
        return OPERATORS[config.operator](
            self.in_features,
            self.out_features,
            r_hat,
            pad=config.pad,
            groups=config.groups,
            split=config.split,
            pairs=config.pairs,
            overflow=config.overflow,
        )

    @torch.no_grad()
    def reset_mora_parameters(self, adapter_name: str, init_weights: bool = True) -> None:
        """M = 0, so that the adapter adds nothing; with init_weights=False a random M of comparable size, for tests."""
        if init_weights:
            nn.init.zeros_(self.mora_M[adapter_name])
        else:
            nn.init.normal_(self.mora_M[adapter_name], std=self.operator[adapter_name].r_hat ** -0.5)

    def set_groups(self, adapter_name: str, groups: Groups) -> None:
        """Changes the group kind of a sharing adapter (Appendix B). The meaning of M changes: merge and reset first."""
        self.operator[adapter_name] = replace(self.operator[adapter_name], groups=groups)

    def set_scale(self, adapter: str, scale: float) -> None:
        if adapter in self.scaling:
            self.scaling[adapter] = scale

    def scale_layer(self, scale: float) -> None:
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] = 1.0 if scale is None else self.scaling[adapter] / scale

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the base weight: same shape, layout and dtype as that weight, computed in fp32."""
        return self._wide_delta_weight(adapter).to(self.get_base_layer().weight.dtype)

    def _wide_delta_weight(self, adapter: str) -> Tensor:
        if adapter not in self.mora_M:
            raise ValueError(f"no adapter {adapter!r} on this layer; there are {sorted(self.mora_M)}")
        M = self.mora_M[adapter]
        M = M.to(torch.promote_types(M.dtype, torch.float32))
        delta = self.operator[adapter].delta_weight(M) * self.scaling[adapter]
        return delta.mT if isinstance(self.get_base_layer(), Conv1D) else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True


class MoraLinear(nn.Module, MoraLayer):
    """MoRA on a `torch.nn.Linear` or a `transformers` `Conv1D`."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, r: int, config: MoraConfig) -> None:
        super().__init__()
        MoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, config, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = [name for name in self.active_adapters if name in self.mora_M]
        if self.disable_adapters or self.merged or not adapters:
            return self.base_layer(x, *args, **kwargs)
        if not args and not kwargs and self._can_join_base(adapters[0], x):
            result = self._with_base(adapters.pop(0), x)
        else:
            result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for adapter in adapters:
            result = result + self._adapter_output(adapter, x)
        return result.to(dtype)

    def _adapter_output(self, adapter: str, x: Tensor) -> Tensor:
        """What one adapter adds, without the base: dropout, then the operator around M, then the scaling."""
        M, operator, scaling = self.mora_M[adapter], self.operator[adapter], self.scaling[adapter]
        if not kernels.is_reference():
            x = self.mora_dropout[adapter](x)
            return kernels.adapted_linear(x, M, operator, scaling, dtype=self._compute_dtype(M, x))
        x = self.mora_dropout[adapter](self._cast_input_dtype(x, M.dtype))
        y = operator.decompress(nn.functional.linear(operator.compress(x), M))
        return y if scaling == 1.0 else y * scaling

    def _with_base(self, adapter: str, x: Tensor) -> Tensor:
        """The base output and one adapter's in one function. Only where `_can_join_base`."""
        base: Any = self.base_layer
        M = self.mora_M[adapter]
        weight_KD = base.weight if isinstance(base, Conv1D) else base.weight.mT
        return kernels.adapted_linear(
            x,
            M,
            self.operator[adapter],
            self.scaling[adapter],
            weight_KD=weight_KD,
            bias=base.bias,
            dropout=self._dropout_now(adapter),
            dtype=self._compute_dtype(M, x),
        )

    def _can_join_base(self, adapter: str, x: Tensor) -> bool:
        """Whether the base layer is a plain frozen linear module whose forward nobody wants to see called.

        Not so under hooks (DeepSpeed ZeRO-3, offloading), for a subclass, for a weight that trains, or with dropout where
        the mask must be applied to a copy of x.
        """
        base = self.base_layer
        if kernels.is_reference() or type(base) not in (nn.Linear, Conv1D):
            return False
        weight, bias = base.weight, base.bias
        return (
            "forward" not in base.__dict__
            and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks)
            and type(weight) in (nn.Parameter, Tensor)
            and not weight.requires_grad
            and (bias is None or not bias.requires_grad)
            and (self._dropout_now(adapter) == 0 or kernels.runs_triton(x, self.operator[adapter]))
        )

    def _dropout_now(self, adapter: str) -> float:
        dropout = self.mora_dropout[adapter]
        return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0

    def _compute_dtype(self, M: Tensor, x: Tensor) -> torch.dtype:
        """Of the product with M: autocast's dtype where autocast is on, else M's, to which PEFT casts an adapter's input."""
        device = x.device.type
        if torch.is_autocast_enabled(device) and M.dtype != torch.float64:
            return torch.get_autocast_dtype(device)
        return M.dtype if getattr(self, "cast_input_dtype_enabled", True) else x.dtype

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the active adapters, or those named, to the base weight. The sum is taken in fp32 and cast once an adapter.

        Raises: ValueError with safe_merge where the sum is not finite; the base weight is then untouched.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.mora_M:
                continue
            self._add_to_base(adapter, sign=1, safe=safe_merge)
            self.merged_adapters.append(adapter)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtracts what `merge` added; exact only up to the rounding of the base dtype."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            self._add_to_base(self.merged_adapters.pop(), sign=-1, safe=False)

    def _add_to_base(self, adapter: str, sign: int, safe: bool) -> None:
        weight = self.get_base_layer().weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        merged = (weight.data.to(wide) + sign * self._wide_delta_weight(adapter).to(wide)).to(weight.dtype)
        if safe and not torch.isfinite(merged).all():
            raise ValueError(f"the merged weight is not finite in {weight.dtype}: adapter {adapter!r} holds bad values")
        weight.data = merged

    def __repr__(self) -> str:
        return "mora." + super().__repr__()


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a module that MoRA can adapt.

    Raises: TypeError, with the class named, for anything that is not a floating-point linear module.
    """
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if not isinstance(module, nn.Linear):
        raise TypeError(
            f"MoRA adapts torch.nn.Linear and transformers Conv1D, not {name}: leave it out of target_modules"
        )
    dtype = module.weight.dtype  # fp8 counts as floating point
    if not dtype.is_floating_point or dtype.itemsize < 2 or "bitsandbytes" in name:
        raise TypeError(f"MoRA does not adapt quantised modules, got {name}: load the base model in bf16, fp16 or fp32")
    return module.in_features, module.out_features
