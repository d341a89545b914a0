"""The MoRA layer: a linear module with y = W x + scaling * f_decomp(M f_comp(x)) (Eq. 2 of arXiv:2405.12130)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mora.choices import Groups
from mora.sizes import wanted_and_clamped_r_hat

from . import kernels
from .base_layer import linear_shape, quantisation_of, stored_weight
from .config import MoraConfig
from .fused_linear import autocast_dtype
from .operators import OPERATORS, Operator


class MoraSquare(nn.Module):
    """The matrix M of one adapter on one layer, `weight` (r_hat, r_hat).

    A module of its own, called wherever M is needed, so that what works on modules reaches M as it does any weight:
    offloading's hooks, DeepSpeed's, FSDP's wrapping.
    """

    def __init__(self, r_hat: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(r_hat, r_hat))

    def forward(self, x: Tensor, operator: Operator, scaling: float, **options: Any) -> Tensor:
        """Return `kernels.adapted_linear` of x (..., in_features) and M; `options` are passed on to it."""
        M = self.weight
        if M.is_meta and not x.is_meta:
            raise RuntimeError(
                f"M is on the meta device, x on {x.device}: the adapter's weights were never loaded; load them with "
                "PeftModel.from_pretrained, or make the adapter without low_cpu_mem_usage=True"
            )
        if not kernels.is_reference():
            return kernels.adapted_linear(x, M, operator, scaling, **options)
        y = operator.decompress(nn.functional.linear(operator.compress(x), M))
        return y if scaling == 1.0 else y * scaling


class MoraLayer(BaseTunerLayer):
    """Hold the adapters of one module: for each name a square matrix `mora_M`, an operator, a dropout and a scaling."""

    adapter_layer_names = ("mora_M",)
    other_param_names = ("r", "operator", "scaling", "mora_dropout")

    def __init__(self, base_layer: nn.Module, **quantisation: Any) -> None:
        """Take the base layer, and as `quantisation` what `peft.utils.get_quantization_kwargs(model)` returns."""
        self.base_layer = base_layer
        self.quantization_backend = quantisation_of(self.get_base_layer(), **quantisation)
        self.r: dict[str, int] = {}
        self.operator: dict[str, Operator] = {}
        self.scaling: dict[str, float] = {}
        self.mora_dropout = nn.ModuleDict({})
        self.mora_M = nn.ModuleDict({})
        self._disable_adapters = False
        self.merged_adapters = []
        self.rounding: dict[str, float] = {}
        self.cast_input_dtype_enabled = True  # as PEFT's layers have it: `peft.helpers.disable_input_dtype_casting`
        self.adapter_of_row: Callable[[int], Sequence[str]] | None = None  # `mixed_rows.adapter_of_each_row`
        self.in_features, self.out_features = linear_shape(self.get_base_layer())

    def update_layer(self, adapter_name: str, r: int, config: MoraConfig, inference_mode: bool = False) -> None:
        """Add an adapter, or replace the one of that name. `config.operator` must be resolved. M starts at zero."""
        operator = self._make_operator(r, config)
        self.r[adapter_name] = r
        self.operator[adapter_name] = operator
        self.scaling[adapter_name] = 1.0  # MoRA has no alpha
        self.mora_dropout[adapter_name] = nn.Dropout(config.mora_dropout) if config.mora_dropout else nn.Identity()
        self.mora_M[adapter_name] = MoraSquare(operator.r_hat)
        self.reset_mora_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _make_operator(self, r: int, config: MoraConfig) -> Operator:
        sides = (self.in_features, self.out_features)
        wanted, r_hat = wanted_and_clamped_r_hat(*sides, r, config.operator, config.rhat_rounding)
        if config.operator == "rotation" and r_hat == 0:
            raise ValueError(
                f"operator='rotation' needs at least two inputs and two outputs, got in_features={self.in_features}, "
                f"out_features={self.out_features}: leave the layer out of target_modules, or use operator='sharing'"
            )
        if r_hat < wanted and not config.inference_mode:
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

    def matrix(self, adapter_name: str) -> Tensor:
        """Return M of an adapter: the trainable parameter, (r_hat, r_hat)."""
        square: Any = self.mora_M[adapter_name]
        return square.weight

    @torch.no_grad()
    def reset_mora_parameters(self, adapter_name: str, init_weights: bool = True) -> None:
        """Set M to zero, so that the adapter adds nothing; with init_weights=False to random values, for tests."""
        M = self.matrix(adapter_name)
        if init_weights:
            nn.init.zeros_(M)
        else:
            nn.init.normal_(M, std=self.operator[adapter_name].r_hat ** -0.5)

    def set_groups(self, adapter_name: str, groups: Groups) -> None:
        """Change the group kind of a sharing adapter (Appendix B). The meaning of M changes: merge and reset first.

        Raises:
            ValueError: If there is no such kind.
        """
        if groups not in get_args(Groups):
            raise ValueError(f"groups={groups!r:.200}: expected one of {', '.join(get_args(Groups))}")
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
        """Return ΔW, what an adapter adds to the base weight.

        Computed in fp32. It has the shape, layout and dtype of the base weight (the dtype of M if the base is quantised).

        Raises:
            ValueError: If there is no adapter of that name.
        """
        delta = self.fp32_delta_weight(adapter)
        owner: Any = self.get_base_layer() if self.quantization_backend is None else self.mora_M[adapter]
        return delta.to(owner.weight.dtype)

    def fp32_delta_weight(self, adapter: str) -> Tensor:
        if adapter not in self.mora_M:
            raise ValueError(f"no adapter {adapter!r} on this layer; there are {sorted(self.mora_M)}")
        M = self.matrix(adapter)
        delta = (
            self.operator[adapter].delta_weight(M.to(torch.promote_types(M.dtype, torch.float32)))
            * self.scaling[adapter]
        )
        return delta.mT if isinstance(self.get_base_layer(), Conv1D) else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True


class MoraLinear(nn.Module, MoraLayer):
    """MoRA on a linear module: `torch.nn.Linear`, a `transformers` `Conv1D`, or a quantised one that PEFT knows."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, r: int, config: MoraConfig, **quantisation: Any
    ) -> None:
        super().__init__()
        MoraLayer.__init__(self, base_layer, **quantisation)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, config, inference_mode=config.inference_mode)

    @property
    def weight(self) -> Tensor:
        """The weight with the adapters' updates, for models that read it instead of calling the layer.

        torch.nn.MultiheadAttention and the fast path of TransformerEncoderLayer do so. Dropout is left out. If the base
        weight is quantised, offloaded or split by DeepSpeed, it is the base's alone, as PEFT returns it.
        """
        adapters, weight = self._adapters_now(), super().weight
        elsewhere = weight.is_meta or weight.numel() != self.in_features * self.out_features
        if elsewhere or self.quantization_backend is not None:
            return weight
        for name in adapters:
            weight = weight + self.get_delta_weight(name)
        return weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.adapter_of_row is not None:
            return self._each_row(self.adapter_of_row(len(x)), x, self.base_layer(x, *args, **kwargs))
        adapters = self._adapters_now()
        if not adapters:
            return self.base_layer(x, *args, **kwargs)
        first, *rest = adapters
        result = None if args or kwargs else self._with_base(first, x)
        if result is None:
            result, rest = self.base_layer(x, *args, **kwargs), adapters
        dtype = result.dtype
        for adapter in rest:
            result = result + self._adapter_output(adapter, x)
        return result if result.dtype == dtype else result.to(dtype)

    def _each_row(self, names: Sequence[str], x: Tensor, result: Tensor) -> Tensor:
        """Return `result`, the base output, with the adapter of each row of x added to it; names: one per row."""
        for name in dict.fromkeys(names):
            if name in self.mora_M:
                chosen = torch.tensor([n == name for n in names], device=x.device)
                update = self._adapter_output(name, x[chosen]).to(result.dtype)
                result = result.index_add(0, chosen.nonzero().squeeze(-1), update)
        return result

    def _adapters_now(self) -> list[str]:
        """Return the adapters that must be added to the base output: the active ones, unless merged or disabled."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        if self._disable_adapters or self.merged_adapters:
            return []
        here = self.mora_M
        return [name for name in self.active_adapters if name in here]

    def _adapter_output(self, adapter: str, x: Tensor) -> Tensor:
        """Return what one adapter adds, without the base: dropout, then the operator around M, then the scaling."""
        square, operator, scaling = self.mora_M[adapter], self.operator[adapter], self.scaling[adapter]
        M: Tensor = square.weight
        if kernels.is_reference():
            return square(self.mora_dropout[adapter](self._cast_input_dtype(x, M.dtype)), operator, scaling)
        return square(self.mora_dropout[adapter](x), operator, scaling, dtype=self._compute_dtype(M, x))

    def _with_base(self, adapter: str, x: Tensor) -> Tensor | None:
        """Return the base output plus one adapter's, computed in one function; None if the base must be called as a module.

        It must be called if it has hooks (DeepSpeed ZeRO-3, offloading), is of a subclass or trains, if dropout needs a
        masked copy of x, and in the reference form of the kernels.
        """
        base = self.base_layer
        if type(base) not in (nn.Linear, Conv1D) or kernels.is_reference():
            return None
        weight, bias, operator, dropout = base.weight, base.bias, self.operator[adapter], self._dropout_now(adapter)
        if (
            "forward" in base.__dict__
            or (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks)
            or type(weight) not in (nn.Parameter, Tensor)
            or weight.requires_grad
            or (bias is not None and bias.requires_grad)
            or (dropout and not kernels.takes_dropout(x, operator))
            or x.shape[-1:] != (self.in_features,)  # the base says what is wrong, here and with a dtype
            or (x.dtype != weight.dtype and not autocast_dtype(x))
        ):
            return None
        square: Any = self.mora_M[adapter]
        return square(
            x,
            operator,
            self.scaling[adapter],
            weight_DK=weight.mT if isinstance(base, Conv1D) else weight,
            bias=bias,
            dropout=dropout,
            dtype=self._compute_dtype(square.weight, x),
        )

    def _dropout_now(self, adapter: str) -> float:
        dropout = self.mora_dropout[adapter]
        return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0

    def _compute_dtype(self, M: Tensor, x: Tensor) -> torch.dtype:
        """Return the dtype of the product with M: autocast's if it is on, else M's, to which PEFT casts the input."""
        if M.dtype != torch.float64 and (dtype := autocast_dtype(x)):
            return dtype
        return M.dtype if self.cast_input_dtype_enabled else x.dtype

    @torch.inference_mode(False)  # what it makes may be trained on later
    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active adapters, or those named, to the base weight. The sum is taken in fp32 and cast once per adapter.

        Raises:
            ValueError: With safe_merge, if the sum is not finite. The base weight is then unchanged.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.mora_M:
                continue
            self._add_to_base(adapter, sign=1, safe=safe_merge)
            self.merged_adapters.append(adapter)

    @torch.inference_mode(False)
    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract what `merge` added; exact only up to the rounding of the base dtype."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            self._add_to_base(self.merged_adapters.pop(), sign=-1, safe=False)

    def _add_to_base(self, adapter: str, sign: int, safe: bool) -> None:
        before = self.get_base_weight()
        upcast = torch.promote_types(before.dtype, torch.float32)
        delta = sign * self.fp32_delta_weight(adapter).to(upcast)
        merged = (before.to(upcast) + delta).to(before.dtype)
        if safe and not torch.isfinite(merged).all():
            # PEFT's wording, which callers match
            broken = f"detected in the merged weights. The adapter {adapter} seems to be broken"
            if merged.isnan().any():
                raise ValueError(f"NaNs {broken}.")
            raise ValueError(f"Infinite numbers {broken}, or {before.dtype} cannot hold the sum.")
        if self.quantization_backend is None:
            weight = stored_weight(self.get_base_layer())
            took = weight is not None
            if weight is not None:
                weight.data.copy_(merged)
                took = bool(((weight.data == merged) | merged.isnan()).all())
        else:
            before = before.clone()
            self.set_base_weight(merged)
            error = self.get_base_weight().to(upcast) - (before.to(upcast) + delta)
            self.rounding[adapter] = (error.norm() / delta.norm()).item() if delta.any() else 0.0
            took = math.isfinite(self.rounding[adapter])
        if not took:
            kind = type(self.get_base_layer()).__qualname__
            raise RuntimeError(
                f"the base weight of this {kind} did not take the merged values of adapter {adapter!r}; where it is "
                "computed from others (weight_norm, pruning), remove that first"
            )

    def __repr__(self) -> str:
        return "mora." + super().__repr__()
