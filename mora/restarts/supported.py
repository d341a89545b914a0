"""Which trainings of `transformers.Trainer` can have restarts. The others are refused before the first step."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

from accelerate.utils import parse_flag_from_env
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.training_args import ParallelMode

from mora.adapter import MoraConfig
from mora.adapter.base_layer import stored_weight
from mora.adapter.layer import MoraLayer

from .layers import Adapted, adapted_layers


def check_supported(args: TrainingArguments, model: nn.Module) -> list[Adapted]:
    """Return the layers to restart.

    Raises:
        ValueError: A restart could not be correct. The message says why, and what to do instead.
    """
    reasons = _of_the_arguments(args) + _of_the_adapter(model) or _of_the_layers(model)
    if reasons:
        raise ValueError(f"RestartCallback: {reasons[0]}")
    assert isinstance(model, PeftModel)
    layers = adapted_layers(model)
    devices = sorted({str(p.device) for layer in layers for p in (layer.base, *layer.adapter.values())})
    if len(devices) > 1:
        raise ValueError(
            f"RestartCallback: the adapted layers are on {', '.join(devices)}, and a restart needs them on one: load "
            "the base without device_map, and start one process per GPU with torchrun or accelerate launch"
        )
    return layers


def _of_the_arguments(args: TrainingArguments) -> list[str]:
    reasons = []
    if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):  # which `accelerate launch --use_fsdp` sets
        reasons.append("under FSDP no rank holds a base weight to merge into: use DDP, or DeepSpeed ZeRO-3")
    if args.parallel_mode is ParallelMode.NOT_DISTRIBUTED and args.n_gpu > 1:
        reasons.append("nn.DataParallel is not supported: start one process per GPU with torchrun or accelerate launch")
    if args.load_best_model_at_end:
        reasons.append(
            "load_best_model_at_end would put an earlier adapter on the last merged base: leave it out, and load the "
            "checkpoint you want with mora.restore_base"
        )
    return reasons


def _of_the_adapter(model: nn.Module) -> list[str]:
    if not isinstance(model, PeftModel):
        return [f"expected a PEFT model, got {type(model).__name__}: get_peft_model(model, MoraConfig(...))"]
    if len(model.active_adapters) != 1:
        return [f"expected one active adapter, got {model.active_adapters}: use set_adapter"]
    config: Any = model.peft_config[model.active_adapters[0]]
    if not isinstance(config, MoraConfig) and type(config) is not LoraConfig:
        return [f"restarts are for LoRA and MoRA, not {type(config).__name__}"]
    reasons = []
    if getattr(config, "init_weights", True) is not True:
        reasons.append("init_weights=False would not start the adapter from zero")
    if getattr(config, "init_lora_weights", True) is not True:
        reasons.append(
            f"init_lora_weights={config.init_lora_weights!r}: a restart begins as init_lora_weights=True does"
        )
    for name in ("lora_bias", "target_parameters", "trainable_token_indices", *_variants(config)):
        if getattr(config, name, None):
            reasons.append(f"{name}: a restart of it is not defined; leave it out")
    return reasons


def _variants(config: Any) -> list[str]:
    """Return the options with which PEFT's LoRA adds an update other than B A, or trains more, such as DoRA and KaSA."""
    return [field.name for field in fields(config) if field.metadata.get("is_lora_variant")]


def _of_the_layers(model: Any) -> list[str]:
    (active,) = model.active_adapters
    reasons = []
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, layer in model.named_modules():
        if not isinstance(layer, (LoraLayer, MoraLayer)) or active not in layer.r:
            continue
        base = layer.get_base_layer()
        if type(base) not in (nn.Linear, Conv1D):
            reasons.append(f"{name} is a {type(base).__name__}, into which an update cannot be merged exactly")
        elif stored_weight(base) is None:
            reasons.append(
                f"the base weight of {name} is computed from others before each forward pass, as by pruning or weight_norm, "
                "which would undo a merge: make it a parameter first, with torch.nn.utils.prune.remove(module, 'weight') or "
                "torch.nn.utils.remove_weight_norm(module)"
            )
        elif type(base.weight) not in (nn.Parameter, Tensor):
            kind = type(base.weight).__name__
            reasons.append(f"{name} has a weight of type {kind}, into which an update cannot be merged exactly")
        elif base.weight.requires_grad:
            reasons.append(
                f"the base weight of {name} trains (requires_grad=True), and a restart would undo what it has learned since "
                "the last one: freeze it with requires_grad_(False), or leave the module out of target_modules"
            )
        elif owners[id(base.weight)] > 1:
            reasons.append(f"{name} shares its weight with another module, which a merge would change, too")
        elif layer.merged:
            reasons.append(f"{name} is merged: unmerge_adapter() before training")
        elif others := sorted(set(layer.r) - {active}):
            reasons.append(
                f"{name} has the adapter {others[0]!r} as well, whose base would change with every merge of {active!r}: "
                f"delete_adapter({others[0]!r}), or load it on a model of its own. TRL adds an adapter 'ref' as the "
                "reference to a PeftModel that it is given: give it ref_model, or the base model with peft_config"
            )
    return reasons
