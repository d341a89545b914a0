"""Digests of a run's weights and data, which its configuration only names. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mora.config.model_schema import Model
from mora.config.seal import sealed, unsealed
from mora.errors import DamagedFileError
from mora.io import replace_file, sha256

OF_A_CHECKPOINT = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")


def digest(model: Model) -> str | None:
    """Return the sha256 over the files of a checkpoint's folder; None for other models, which their configuration pins."""
    if model.source != "pretrained" or model.path is None or not Path(model.path).is_dir():
        return None
    files = sorted(path for path in Path(model.path).iterdir() if path.suffix in OF_A_CHECKPOINT and path.is_file())
    return hashlib.sha256("\n".join(f"{path.name} {sha256(path)}" for path in files).encode()).hexdigest()


def same_as_before(folder: Path, inputs: dict[str, Any]) -> None:
    """Record the run's inputs in its folder.

    Raises:
        DamagedFileError: The folder has checkpoints that were made with other inputs.
    """
    path = folder / "inputs.json"
    begun = any((folder / "checkpoints").glob("step_*"))
    try:
        before = unsealed(json.loads(path.read_text())) if begun and path.is_file() else inputs
    except (ValueError, AttributeError) as error:
        raise DamagedFileError(
            f"{path}, which records the inputs of the checkpoints there, is damaged ({error}): remove it if weights and "
            "data are unchanged, or the folder to start over"
        ) from error
    if before != inputs and begun:
        changed = ", ".join(key for key in inputs if before.get(key) != inputs[key])
        raise DamagedFileError(
            f"{folder} holds a checkpoint made of other inputs ({changed}): restore what it was started with, or remove "
            "the folder to start over"
        )
    replace_file(path, json.dumps(sealed(inputs), indent=1, sort_keys=True) + "\n")
