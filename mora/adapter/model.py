"""MoraModel: puts MoRA layers into a model, as PEFT's BaseTuner asks."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from mora.sizes import auto_operator

from .config import MoraConfig
from .layer import MoraLayer, MoraLinear
from .mixed_rows import adapter_of_each_row, rows_per_name
from .weighted_sum import add_weighted

logger = logging.getLogger(__name__)

ANOTHER_BASE = "restarts merged earlier updates into the base"
RESTARTS = "base_model.mora_restarts"  # among the saved weights of an adapter
OF_ANOTHER_BASE = (
    "the weights of adapter {!r} were saved after {} restarts, each of which merged an update into the base, and the base "
    "of this model has {}: training would go on with another model. Call mora.restore_base(model, folder) with the folder "
    "that the weights were loaded from, or resume that checkpoint by a Trainer with RestartCallback"
)
OF_OTHER_MODULES = tuple(f"torch.nn.modules.{name}" for name in ("module", "container", "transformer"))  # not layers


class MoraModel(BaseTuner):
    """A base model with MoRA adapters (arXiv:2405.12130), built by `peft.get_peft_model(model, MoraConfig(...))`."""

    prefix = "mora_"
    tuner_layer_cls = MoraLayer
    merged_base: Any = None  # a MergedBase, once restarts have changed the base or `restore_base` has
    loaded_after: Mapping[str, int] = {}  # adapter -> the restarts after which its loaded weights were saved
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    # PEFT calls its injection hooks for the first adapter of a model only, so neither is used here.
    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        check_all_found(self.peft_config[adapter_name], model)
        self.forget_load(adapter_name)
        self._warn_of_another_base(self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = [layer for layer in _layers(model) if adapter_name in layer.operator]
        self.peft_config[adapter_name]._sizes = {
            (layer.in_features, layer.out_features): layer.operator[adapter_name].r_hat for layer in layers
        }
        self._report_ignored_inputs(model, self.peft_config[adapter_name], adapter_name)

    def _warn_of_another_base(self, config: MoraConfig) -> None:
        if config.restarted and self.merged_base is None:
            warnings.warn(
                f"{ANOTHER_BASE} that this adapter fits: call mora.restore_base(model, folder), unless training is "
                "resumed with RestartCallback, or export the adapter with mora-export; for a new adapter set "
                "restarted=False in its configuration",
                stacklevel=3,
            )

    def _prepare_model(self, config: MoraConfig, model: nn.Module) -> None:
        if config.operator == "auto":
            config.operator = auto_operator(hidden_size(model), config.r, config.rhat_rounding)
            logger.info("MoRA operator auto -> %s at r=%d", config.operator, config.r)

    def _report_ignored_inputs(self, model: nn.Module, config: MoraConfig, adapter_name: str) -> None:
        if config.inference_mode:  # whoever trained it was told
            return
        ignored = Counter()
        for module in model.modules():
            if isinstance(module, MoraLayer) and adapter_name in module.operator:
                operator = module.operator[adapter_name]
                if operator.ignored_inputs():
                    ignored[operator.in_features, operator.out_features, operator.ignored_inputs()] += 1
        for (k, d, n), count in ignored.items():
            advice = (
                "overflow='fold' or operator='sharing' uses them all"
                if config.operator != "truncation"
                else ("operator='sharing' or 'rotation' uses them")
            )
            _warn_once(
                f"MoRA operator {config.operator} ignores {n} of {k} inputs ({100 * n / k:.0f}%) of {count} modules with "
                f"{d} outputs; {advice}."
            )

    def check_base(self) -> None:
        """Raise ValueError if an active adapter's weights were loaded onto a base other than theirs."""
        restarts = _restarts(self)
        for name in self.active_adapters:
            if (saved := self.loaded_after.get(name, restarts)) != restarts:
                raise ValueError(OF_ANOTHER_BASE.format(name, saved, restarts))

    def forget_load(self, adapter_name: str) -> None:
        """Let the adapter's weights count as those of this base: they are new, or a restart will change both together."""
        self.loaded_after = {name: count for name, count in self.loaded_after.items() if name != adapter_name}

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        """PEFT enters it around forward and generate."""
        if self.training:
            self.check_base()
        if adapter_names is None:
            yield
            return
        with adapter_of_each_row(self, adapter_names, rows_per_name(self.model, args, kwargs)):
            yield

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "linear",
        **kwargs: Any,
    ) -> None:
        """Add a new, frozen adapter that is the weighted sum of others, as LoRA's method does.

        It is on every module that one of them is on. If it cannot be made, nothing of it is left behind.

        Args:
            adapters: Names of the adapters to sum. They may be on different modules and may have different r there, but must
                have the same operator with the same options, and train nothing else than M; then the sum is exact.
            weights: One weight per adapter.
            adapter_name: Name of the new adapter. Nothing happens if it exists, as in PEFT.
            combination_type: Only "linear". PEFT's other combinations are for low ranks.
            **kwargs: Options of those combinations, ignored.

        Raises:
            ValueError: For another combination, or adapters whose sum is not a MoRA adapter; the message names the field
                in which they differ, and the module.
        """
        if combination_type != "linear":
            raise ValueError(
                f"combination_type={combination_type!r}: MoRA has 'linear', which is exact for equal operators"
            )
        if adapter_name not in self.peft_config:  # as PEFT
            add_weighted(self, adapters, weights, adapter_name)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        super().merge_adapter(*args, **kwargs)
        _report_rounding(_layers(self.model))

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        layers = _layers(self.model)
        plain = super()._unload_and_optionally_merge(*args, **kwargs)
        _report_rounding(layers)
        return plain

    def _check_merge_allowed(self) -> None:
        """Untie adapted heads from the embedding, which must not take up the update; so with any weight of two modules."""
        bases: list[Any] = [layer.get_base_layer() for layer in _layers(self.model)]
        owners = Counter(id(p) for module in self.model.modules() for p in module.parameters(recurse=False))
        for base in bases:
            if owners[id(getattr(base, "weight", None))] > 1:  # HQQ's and GPTQ's modules have none
                base.weight = nn.Parameter(base.weight.detach().clone(), base.weight.requires_grad)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a base module back as it is: PEFT's method also copies `weight`, which HQQ's and GPTQ's modules have not."""
        if isinstance(new_module, BaseTunerLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)

    @classmethod
    def _get_adapter_state_dict(cls, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the weights of an adapter that are saved, with the number of restarts, which what loads them may need."""
        weights = super()._get_adapter_state_dict(model, *args, **kwargs)
        restarts = _restarts(getattr(model, "base_model", None))
        return weights | ({RESTARTS: torch.tensor(float(restarts))} if restarts else {})

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: MoraConfig, adapter_name: str, state_dict: dict[str, Any]
    ) -> dict[str, Any]:
        """Note the number of restarts. Version 0.1.0 saved M as `mora_M`; later ones save it as `mora_M.weight`."""
        renamed = {f"{key}.weight" if key.endswith(".mora_M") else key: value for key, value in state_dict.items()}
        restarts, tuner = int(renamed.pop(RESTARTS, 0)), getattr(model, "base_model", None)
        if isinstance(tuner, MoraModel):
            tuner.loaded_after = {**tuner.loaded_after, adapter_name: restarts}
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, renamed)

    def _create_and_replace(
        self,
        config: MoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        r = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), current_key), config.r)
        if isinstance(target, BaseTunerLayer) and not isinstance(target, MoraLinear):
            raise TypeError(
                f"{current_key} already carries a {type(target).__qualname__}: MoRA cannot be put on top of it"
            )
        try:
            if isinstance(target, MoraLinear):
                target.update_layer(adapter_name, r, config, inference_mode=config.inference_mode)
                return
            module = MoraLinear(target, adapter_name, r, config, **get_quantization_kwargs(self.model))
        except (TypeError, ValueError) as error:  # a module does not know its own name
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{current_key}: {error}") from error
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)
        self._replace_module(parent, target_name, module, target)


def _restarts(tuner: Any) -> int:
    """Return how many restarts the base of a MoraModel has; 0 for anything else."""
    base = tuner.merged_base if isinstance(tuner, MoraModel) else None
    return 0 if base is None else base.count


def _layers(model: nn.Module) -> list[MoraLayer]:
    return [module for module in model.modules() if isinstance(module, MoraLayer)]


def _report_rounding(layers: list[MoraLayer]) -> None:
    """Says how much of the update a quantised base has rounded away."""
    errors = [error for layer in layers for name, error in layer.rounding.items() if name in layer.merged_adapters]
    if errors:
        warnings.warn(
            f"merged into a quantised base, whose rounding is {sum(errors) / len(errors):.2g} of the update's size (worst "
            f"layer {max(errors):.2g}). mora-export merges into the base as it was before it was quantised, exactly",
            stacklevel=3,
        )


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def check_all_found(config: MoraConfig, model: nn.Module) -> None:
    """Check that no target is skipped silently, as PEFT does if another target is found.

    Warns about a target that names no module.

    Raises:
        ValueError: If a target asks for experts that are parameters, not linear modules (transformers 5).
    """
    experts = [name for name in expert_parameters(model) if not _excluded(config, name)]
    targets = config.target_modules
    names = [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        missing = []
        chosen = experts if targets.lower() == "all-linear" else [e for e in experts if re.fullmatch(targets, e)]
    else:
        missing = [t for t in sorted(targets or ()) if not any(f".{name}".endswith(f".{t}") for name in names)]
        chosen = experts if missing else [e for e in experts for t in targets or () if f".{e}".endswith(f".{t}")]
    if chosen:
        raise ValueError(
            f"target_modules={targets!r} asks for experts, which are parameters here ({chosen[0]} and "
            f"{len(chosen) - 1} more), which MoRA does not adapt: name the linear modules alone, or leave the experts out "
            f"on purpose with exclude_modules={sorted({_owner(name) for name in chosen})}"
        )
    if missing and len(missing) < len(targets or ()):
        warnings.warn(f"target_modules: no module is called {', '.join(missing)}", stacklevel=2)


def expert_parameters(model: nn.Module) -> list[str]:
    """Return the names of the weights of experts that are parameters of the experts' own class.

    What lies in a tuner layer, a module of torch or a quantised layer is not one: `target_modules` names these modules.
    """
    names, options, known = [], get_quantization_kwargs(model), None
    for name, module in model.named_modules():
        if known is not None and name.startswith(f"{known}."):
            continue
        if _is_known(module, **options):
            known = name
        elif "expert" in f"{name} {type(module).__qualname__}".lower():
            own = module.named_parameters(prefix=name, recurse=False)
            names += [full_name for full_name, value in own if value.dim() >= 2]
    return names


def _owner(parameter: str) -> str:
    """Return the last part of its module's name that is no number (of a ModuleList), or its own name if there is none."""
    *modules, own = parameter.split(".")
    return next((part for part in reversed(modules) if not part.isdecimal()), own)


def _is_known(module: nn.Module, **options: Any) -> bool:
    """Say whether it is a tuner layer, a layer of torch or a quantised one; options as in `quantisation_of`."""
    layer = isinstance(module, (BaseTunerLayer, Conv1D)) or any(
        kind.__module__.startswith("torch.nn.modules.") and kind.__module__ not in OF_OTHER_MODULES
        for kind in type(module).__mro__
    )
    return layer or resolve_quantization_backend(module, **options) is not None


def _excluded(config: MoraConfig, name: str) -> bool:
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        return re.fullmatch(excluded, name) is not None
    return any(f".{part}." in f".{name}." for part in excluded or ())


def hidden_size(model: nn.Module) -> int:
    """Return the width of the residual stream: from the model's config, else what most linear modules read."""
    config = getattr(model, "config", None)
    for name in ("hidden_size", "n_embd", "d_model"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    widths = Counter(m.in_features for m in model.modules() if isinstance(m, nn.Linear))
    return widths.most_common(1)[0][0] if widths else 1
