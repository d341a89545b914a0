"""What may have been meant by a choice or a setting that does not exist. Imports no torch."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from mora.errors import did_you_mean, nearest
from mora.frozen import FrozenModel

from .schema import RunConfig
from .source import CONFIG_DIR

ALSO_CALLED = {  # name in other programs -> name here
    "alpha": "method.adapter.lora_alpha (MoRA has none)",
    "batch_size": "task.train.global_batch_size",
    "batchsize": "task.train.global_batch_size",
    "bf16": "scale.precision",
    "data": "task.data.corpus.sources",
    "epochs": "task.train.epochs",
    "fp16": "scale.precision",
    "gpu": "hardware.processes",
    "gpus": "hardware.processes",
    "gradient_accumulation_steps": "hardware.micro_batch_size",
    "learning_rate": "lr",
    "lora_alpha": "method.adapter.lora_alpha (MoRA has none)",
    "lora_dropout": "method.adapter.dropout",
    "lora_r": "r",
    "max_grad_norm": "task.train.max_grad_norm",
    "max_steps": "task.train.max_steps (with task.train.epochs=null)",
    "num_gpus": "hardware.processes",
    "num_train_epochs": "task.train.epochs",
    "operator": "method.adapter.operator",
    "output": "scale.results_dir",
    "output_dir": "scale.results_dir",
    "per_device_train_batch_size": "hardware.micro_batch_size",
    "rank": "r",
    "seeds": "seed=0,1,2 with -m",
    "size": "scale",
    "steps": "task.train.max_steps (with task.train.epochs=null)",
    "target_modules": "method.adapter.target_modules",
    "wandb": "tracker=wandb",
    "warmup": "task.train.warmup_steps",
    "warmup_ratio": "task.train.warmup_steps",
}
METHODS = {"full": "fft", "lora+": "lora_plus", "untuned": "none", "base": "none", "qlora": "lora"}
ELSE = {
    "method": "; any other of PEFT's methods is method=peft method.config=adapter_config.json",
    "model": "; a folder or hub id is model=custom model.path=PLACE",
}


def choices(group: str) -> list[str]:
    """Return the names that `group=NAME` takes, in order: for tasks the folders, else the group's files."""
    folder = CONFIG_DIR / group
    folders = {path.parent.name for path in folder.glob("*/*.yaml")}
    return sorted(folders or [path.stem for path in folder.glob("*.yaml")])


def choice(group: str, wanted: str) -> str:
    """Return what to write instead of `group=wanted`, as the end of a message."""
    known = METHODS.get(wanted.lower()) if group == "method" else None
    name = known or nearest(wanted, choices(group))
    return ELSE.get(group, "") + did_you_mean(name and f"{group}={name}")


def field(path: str) -> str:
    """Return what to write instead of a setting that is not there, as the end of a message; empty if nothing is near."""
    group, name = path.split(".")[0], path.split(".")[-1].lower()
    if path in fields():
        return f"; another {group} has it, this one has not"
    if re.search(r"\.\d", path):
        return ""  # there are no hints for what is inside a list
    last = nearest(name, (known.rpartition(".")[2] for known in fields()))
    called = [known for known in fields() if known.rpartition(".")[2] == last]
    here = [known for known in called if known.startswith(f"{group}.")] or called
    return did_you_mean(ALSO_CALLED.get(name) or nearest(path, here) or next(iter(here), None))


@functools.cache
def fields() -> tuple[str, ...]:
    """Return the dotted name of every setting of a run, whatever the kinds of its sections."""
    return tuple(dict.fromkeys(_fields(RunConfig, "")))


def _fields(section: type[FrozenModel], prefix: str) -> Iterator[str]:
    for name, info in section.model_fields.items():
        yield prefix + name
        for part in _sections(info.annotation):
            yield from _fields(part, f"{prefix}{name}.")


def _sections(annotation: Any) -> list[type[FrozenModel]]:
    """Return the sections that a field may hold, other than those in a list."""
    if isinstance(annotation, type) and issubclass(annotation, FrozenModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [section for part in get_args(annotation) for section in _sections(part)]
    return []
