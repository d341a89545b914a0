"""A run's configuration, typed, checked and complete, from the plain values of its config.yaml. Needs no Hydra, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mora.errors import ConfigError, one_line, short

from . import hints
from .model_folder import identified
from .peft_file import with_settings
from .schema import RunConfig
from .yaml_file import read_yaml

MAX_FIELDS = 5  # the most wrong fields that a message names


def load(values: dict[str, Any]) -> RunConfig:
    """Return plain values, in the form of a run's config.yaml, as a checked and complete run.

    If lr is missing, it is the middle of the grid. If the model is a folder, its fingerprint is added; if the method is a
    file, the file's content.

    Raises:
        ConfigError: Values are wrong or missing; the error names up to five.
    """
    try:
        config = RunConfig.model_validate(with_settings(values))
        config = config.model_copy(update={"model": identified(config.model)})
    except ValidationError as error:
        raise ConfigError(described(error, values)) from error
    except ValueError as error:  # about the model's folder, or the method's file
        raise ConfigError(str(error)) from error
    if config.lr is None and config.method.trains:
        grid = config.lr_grid()
        config = config.model_copy(update={"lr": grid[len(grid) // 2]})
    return config


def load_run(folder: Path) -> RunConfig:
    """Return the configuration that a run's folder holds.

    Raises:
        ConfigError: It is no configuration of this version.
        OSError: There is none.
        yaml.YAMLError: The file is damaged.
    """
    return load(read_yaml(folder / "config.yaml"))


def described(error: ValidationError, values: Any) -> str:
    """Return, in one line, the fields that are wrong; if there are many, the first."""
    errors = [_describe(e, values) for e in error.errors()]
    more = [f"{len(errors) - MAX_FIELDS} more fields"] if len(errors) > MAX_FIELDS else []
    return one_line("; ".join([*errors[:MAX_FIELDS], *more]))  # a field's name may hold a line break


def _describe(error: Any, values: Any) -> str:
    where = _field(error["loc"], values)
    if not where:
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict):  # a section's own check names its fields
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "union_tag_invalid":
        return f"{where}.kind={error['ctx']['tag']!r}: expected one of {error['ctx']['expected_tags']}"
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such field{hints.field(where)}"
    if error["type"] == "missing":
        return f"{where} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}={short(repr(error['input']))}: {short(message[0].lower() + message[1:], 500)}"


def _field(loc: tuple[Any, ...], values: Any) -> str:
    """Return the field as the user writes it.

    pydantic puts the kind of a section, and the type that it tried, between the names; these are removed.
    """
    parts: list[str] = []
    for i, part in enumerate(loc):
        section = values if isinstance(values, dict) else {}
        if (part == section.get("kind") and i < len(loc) - 1) or (isinstance(part, str) and "[" in part):
            continue
        parts.append(str(part))
        values = values[part] if isinstance(values, list) else section.get(part)
    return ".".join(parts)
