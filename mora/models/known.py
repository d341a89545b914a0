"""The models of configs/model, by name. Imports no torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from mora.config.model_schema import Model
from mora.config.source import CONFIG_DIR
from mora.config.yaml_file import read_yaml
from mora.errors import did_you_mean, nearest

FOLDER = CONFIG_DIR / "model"


def named(name: str) -> Model | None:
    """Return the model of configs/model/<name>.yaml; None if there is no such file, or it is incomplete, as custom is."""
    path = FOLDER / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        return None
    return _read(path, path.stat().st_mtime_ns)


@lru_cache
def _read(path: Path, changed: int) -> Model | None:
    """Read the file once, since a plan and a table ask hundreds of times, and again if it has changed."""
    try:
        return Model.model_validate(read_yaml(path))
    except ValidationError:
        return None


def names() -> list[str]:
    """Return the names of the models in configs/model."""
    return [path.stem for path in sorted(FOLDER.glob("*.yaml")) if named(path.stem)]


def refused(name: str) -> str | None:
    """Return why this cannot name a model; None if it may, as any OWNER/NAME of the hub may.

    It cannot if it is a path to nothing, or nearly the name of a known model.
    """
    if name in ("", ".", "..") or Path(name).exists():
        if not Path(name).is_dir():
            return f"{name!r} is a file: expected a folder, hub id or name in configs/model"
        parts = ("config.json", "adapter_config.json", "adapter", "model")  # of a run's folder, the loader says which
        if name and any((Path(name) / part).exists() for part in parts):
            return None
        return f"{name!r}: expected a folder with config.json or adapter_config.json, hub id or name in configs/model"
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return f"{name!r}: there is no such folder; give a folder, hub id or name in configs/model"
    return f"{name!r}: there is no such model{near}" if "/" not in name and (near := meant(name)) else None


def meant(name: str) -> str:
    """Return `; did you mean ...` if this is nearly the name of a known model, else ""."""
    near = nearest(name, names())
    return f"{did_you_mean(near)} configs/model has {', '.join(names())}" if near else ""
