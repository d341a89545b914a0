"""The models of configs/model, by name. No torch."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from mora.config.model_schema import Model
from mora.config.source import CONFIG_DIR
from mora.config.yaml_file import read_yaml

FOLDER = CONFIG_DIR / "model"


def named(name: str) -> Model | None:
    """The model of configs/model/<name>.yaml; None where there is none of that name, or it is incomplete, as custom is."""
    path = FOLDER / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        return None
    return _read(path, path.stat().st_mtime_ns)


@lru_cache
def _read(path: Path, changed: int) -> Model | None:
    """Once, for a plan and a table ask hundreds of times; again where the file has changed."""
    try:
        return Model.model_validate(read_yaml(path))
    except ValidationError:
        return None


def names() -> list[str]:
    """Of the models in configs/model."""
    return [path.stem for path in sorted(FOLDER.glob("*.yaml")) if named(path.stem)]


def refused(name: str) -> str | None:
    """Why this can be no model: a path where nothing lies, or what is nearly the name of a known one; None where it may be,
    as every OWNER/NAME of the hub."""
    if Path(name).exists():
        return (
            None if Path(name).is_dir() else f"{name!r} is a file: expected a folder, hub id or name in configs/model"
        )
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return f"{name!r}: there is no such folder; give a folder, hub id or name in configs/model"
    return f"{name!r}: there is no such model{near}" if "/" not in name and (near := meant(name)) else None


def meant(name: str) -> str:
    """`; did you mean ...`, of what is nearly the name of a known model; else nothing."""
    begun = [one for one in names() if one.startswith(name.lower())]
    near = begun or get_close_matches(name.lower(), names(), 1)
    return f"; did you mean {near[0]}? configs/model has {', '.join(names())}" if name and near else ""
