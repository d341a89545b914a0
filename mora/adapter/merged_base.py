"""The merged base: the base weights into which restarts have merged updates, saved beside the adapter that needs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mora.io import replacing
from mora.ranks import rank

from .base_layer import stored_weight

FILE = "restarts.safetensors"


def find_file(adapter: str | os.PathLike[str]) -> Path | None:
    """Return the merged base's file of an adapter, which is a folder or a Hub id; None if it has none."""
    folder = Path(adapter)
    if folder.is_dir():
        return folder / FILE if (folder / FILE).is_file() else None
    try:
        return Path(hf_hub_download(str(adapter), FILE))
    except EntryNotFoundError:
        return None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Context manager: yield the file's tensors and its metadata. Raises ValueError if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if missing := [name for name in ("count", "step") if name not in facts]:
                raise ValueError(f"{path} does not say its {missing[0]}: RestartCallback did not write it")
            yield file, facts
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read, it is cut or damaged: {error}; copy it again, or use an earlier checkpoint"
        ) from error


@dataclass
class MergedBase:
    """The base weights after a number of restarts.

    Attributes:
        count: Restarts so far.
        step: Updates so far.
        shadow: The merged base weights in fp32, by module.
        groups: The kinds of groups in turn; empty if they do not change, None if the file does not say.
        written: Folder -> the step at which the base was written there.
    """

    count: int = 0
    step: int = 0
    shadow: dict[str, torch.Tensor] = field(default_factory=dict)
    groups: tuple[str, ...] | None = ()
    written: dict[Path, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the file that `load_base` reads, whole or not at all."""
        with replacing(folder / FILE) as partial:
            facts = {"count": str(self.count), "step": str(self.step), "groups": " ".join(self.groups or ())}
            save_file(self.shadow, partial, metadata=facts)
        self.written[folder.resolve()] = self.step


def attach_base(model: PeftModel, base: MergedBase) -> None:
    """Give the model its merged base, which it writes beside every adapter that it saves from now on."""
    model.base_model.merged_base = base
    model.save_pretrained = MethodType(save_pretrained, model)  # a method, which deepcopy binds to the copy


def attached_base(model: PeftModel) -> MergedBase | None:
    """Return what `attach_base` gave the model; None if it was not called."""
    return model.base_model.__dict__.get("merged_base")


def save_pretrained(
    self: PeftModel,
    save_directory: str | os.PathLike[str],
    safe_serialization: bool = True,
    selected_adapters: list[str] | None = None,
    **options: Any,
) -> None:
    """Save as PEFT does, and beside each adapter the merged base if there were restarts."""
    base, names = attached_base(self), selected_adapters or list(self.peft_config)
    restarted = base is not None and base.count > 0
    with _marked([self.peft_config[name] for name in names if name in self.peft_config] if restarted else []):
        type(self).save_pretrained(self, save_directory, safe_serialization, selected_adapters, **options)
    if base is not None and restarted and rank() == 0 and options.get("is_main_process", True):
        for name in names:
            base.save(adapter_folder(Path(save_directory), name))


def adapter_folder(folder: Path, name: str) -> Path:
    """Return where PEFT puts an adapter of that name under a folder."""
    return folder if name == "default" else folder / name


@contextmanager
def _marked(configs: list[Any]) -> Iterator[None]:
    """Context manager: those of the configurations that are MoRA's say `restarted`; PEFT's own have no such field."""
    before = [(config, config.restarted) for config in configs if hasattr(config, "restarted")]
    for config, _ in before:
        config.restarted = True
    try:
        yield
    finally:
        for config, restarted in before:
            config.restarted = restarted


def load_base(folder: Path, step: int | None = None) -> MergedBase:
    """Read a checkpoint's merged base. Raises ValueError if there is none, or `step` is given and it is of another step."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(
            f"{path} is missing, without which the merged base is lost: name a checkpoint that was written with "
            "RestartCallback; one that the Trainer resumes outside its output_dir is RestartCallback(resume_from=folder)"
        )
    with _opened(path) as (file, facts):
        if step is not None and int(facts["step"]) != step:
            raise ValueError(
                f"{path} is of step {facts['step']}, the Trainer resumes step {step}: name the checkpoint of step {step}, "
                "RestartCallback(resume_from=folder)"
            )
        groups = tuple(facts["groups"].split()) if "groups" in facts else None
        shadow = {name: file.get_tensor(name) for name in file.keys()}
        return MergedBase(int(facts["count"]), int(facts["step"]), shadow, groups)


def restore_base(model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    """Write the merged base of a saved adapter into a model, which keeps it when it saves adapters itself.

    Args:
        model: A PEFT model on the original base, with that adapter: in memory, unmerged, not quantised.
        checkpoint: The adapter's folder, written during or after a training with `RestartCallback`.

    Raises:
        ValueError: If `restarts.safetensors` is missing or belongs to another model, or if a base weight cannot be written
            because it is offloaded, split, quantised, computed from others, or has an adapter merged into it. The message
            names the module, and nothing has been written.
    """
    folder = Path(checkpoint)
    base = load_base(folder)
    modules = dict(model.named_modules())
    weights = {name: _weight(modules.get(name), name, value.shape, folder) for name, value in base.shadow.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(base.shadow[name])
    if isinstance(model, PeftModel):
        attach_base(model, base)


def _weight(layer: nn.Module | None, name: str, shape: torch.Size, folder: Path) -> torch.Tensor:
    """Return the base weight of an adapted layer. Raises: ValueError if no value of that shape can be written into it."""
    held = f"{folder / FILE} holds {name}"
    of_the_base = f"give the PEFT model of the base that was trained, PeftModel.from_pretrained(base, {str(folder)!r})"
    if layer is None:
        raise ValueError(f"{held}, which this model lacks: {of_the_base}")
    if not isinstance(layer, BaseTunerLayer):
        raise ValueError(f"{held}, which has no adapter in this model: {of_the_base}")
    if layer.merged:
        raise ValueError(f"{held}, into which this model has merged {layer.merged_adapters}: unmerge_adapter() first")
    base = layer.get_base_layer()
    weight = stored_weight(base)
    if weight is None:
        raise ValueError(
            f"{held}, whose base, a {type(base).__name__}, has no weight of its own to write: {of_the_base}"
        )
    if weight.is_meta or weight.numel() == 0 < shape.numel():
        raise ValueError(
            f"{held}, whose weight is not in memory (offloaded, split by DeepSpeed, or never loaded): load the base "
            "in memory as a whole, without device_map or DeepSpeed, restore it, and offload or split it afterwards"
        )
    if type(weight) not in (nn.Parameter, torch.Tensor) or not weight.is_floating_point():
        raise ValueError(
            f"{held}, whose weight here is a {type(weight).__name__} of {weight.dtype}: load the base in bf16, fp16 or "
            "fp32, neither quantised nor split"
        )
    if weight.shape != shape:
        raise ValueError(f"{held} of shape {tuple(shape)}, which is {tuple(weight.shape)} in this model: {of_the_base}")
    return weight
