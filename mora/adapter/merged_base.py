"""The merged base that lies beside the adapter of a checkpoint with restarts: `restarts.safetensors`.

`mora.restarts.callback` writes it. It is read here, because an export needs it, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn

FILE = "restarts.safetensors"


def find(adapter: str | os.PathLike[str]) -> Path | None:
    """Return the file that belongs to an adapter, a folder or a Hub id; None where there is none."""
    folder = Path(adapter)
    if folder.is_dir():
        return folder / FILE if (folder / FILE).is_file() else None
    try:
        return Path(hf_hub_download(str(adapter), FILE))
    except EntryNotFoundError:
        return None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Context manager: yield the tensors of the file, and what it says of them.

    Raises: ValueError where it is damaged.
    """
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


def restart_count(path: Path) -> int:
    """Return how many restarts went into the merged base of this file. Raises: ValueError."""
    with _opened(path) as (_, facts):
        return int(facts["count"])


class MergedBase(NamedTuple):
    """What a checkpoint says of its restarts.

    Attributes:
        count: restarts so far.
        shadow: the merged base weights in fp32, by module.
        groups: the kinds of groups in turn, none where they do not change; None in a file that does not say it.
    """

    count: int
    shadow: dict[str, torch.Tensor]
    groups: tuple[str, ...] | None


def load(folder: Path, step: int | None = None) -> MergedBase:
    """Read the file of a checkpoint, of `step` if it is given. Raises: ValueError."""
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
        return MergedBase(int(facts["count"]), {name: file.get_tensor(name) for name in file.keys()}, groups)


def restore_base(model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    """Write the merged base of a checkpoint into a model.

    Args:
        model: A PEFT model on the original base, with the adapter of that checkpoint.
        checkpoint: A folder that was written with `RestartCallback`, under whatever name it lies now.

    Raises:
        ValueError: If `restarts.safetensors` is missing or belongs to another model.
    """
    folder = Path(checkpoint)
    shadow = load(folder).shadow
    modules = dict(model.named_modules())
    if unknown := [name for name in shadow if name not in modules]:
        raise ValueError(
            f"{folder / FILE} holds {unknown[0]}, which this model lacks: give the PEFT model of the base that was "
            f"trained, PeftModel.from_pretrained(base, {str(folder)!r})"
        )
    with torch.no_grad():
        for name, value in shadow.items():
            modules[name].get_base_layer().weight.copy_(value)
