"""The adapter_config.json of a PEFT method, as the settings of method=peft. Imports neither PEFT nor torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "adapter_config.json"
# Fields that say where an adapter came from, not what it is.
NOT_OF_THE_METHOD = (
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "task_type",
)


def with_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return a run's plain values. If the method is peft and only the path of its file is known, the content is added.

    So a run keeps the settings that it began with, and run ids tell two files apart whatever their names are.

    Raises:
        ValueError: The file is not given, does not exist, or is not that of a PEFT method.
    """
    method: Any = values.get("method")
    adapter = method.get("adapter") if isinstance(method, dict) else None
    if not isinstance(adapter, dict) or adapter.get("kind") != "peft" or adapter.get("settings") is not None:
        return values
    if not (path := method.get("config")):
        raise ValueError(f"method.config is missing: method peft needs the {NAME} of a PEFT method, method.config=FILE")
    return values | {"method": method | {"adapter": adapter | {"settings": read(Path(path))}}}


def read(path: Path) -> dict[str, Any]:
    """Return the settings of an adapter_config.json. Raises ValueError if it is none."""
    where, file = f"method.config={str(path)!r}", path / NAME if path.is_dir() else path
    try:
        settings = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{where}: there is no such file; give the {NAME} of a PEFT method") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{where} cannot be read ({error}): expected JSON, as PEFT writes it") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise ValueError(f'{where} has no peft_type: expected an object such as {{"peft_type": "VERA", "r": 64}}')
    return {key: value for key, value in settings.items() if key not in NOT_OF_THE_METHOD}
