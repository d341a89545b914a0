"""The place of a run's model. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from mora.config.yaml_file import read_yaml
from mora.errors import ConfigError, nearest
from mora.io import output_dir

PARTS = {"model": "config.json", "adapter": "adapter_config.json"}  # of a run's folder


def find(name: str) -> Path | None:
    """Return the folder of a model or adapter, named by a run's id or folder, or by itself; None if it is none of these.

    A run that changed more than its adapter left the whole model, which is then meant.

    Raises:
        ConfigError: It is the folder of a run that has left nothing.
    """
    for folder in (output_dir() / name, Path(name)):
        if (folder / "config.yaml").is_file():
            left = [folder / part for part, file in PARTS.items() if (folder / part / file).is_file()]
            if not left:
                raise ConfigError(
                    f"{folder} holds neither adapter/ nor model/: the run has not finished, trained nothing, or was to "
                    "leave none (hardware.save_model=false, as a table's searches)"
                )
            return left[0]
    folder = Path(name)
    return folder if any((folder / file).is_file() for file in ("adapter_config.json", "config.json")) else None


def unknown(name: str) -> ConfigError:
    """Return an error that names what may have been meant instead of this unknown run."""
    runs = sorted(path.parent.name for path in output_dir().glob("*/config.yaml"))
    there = f"{len(runs)} runs, such as {nearest(name, runs) or runs[0]}" if runs else "none"
    return ConfigError(
        f"{name!r}: expected a run's id or folder, or a folder with an adapter; {output_dir()} holds {there}"
    )


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def precision(folder: Path) -> str:
    """Return the precision of the run that wrote the folder; fp32 if no run did."""
    config = folder.parent / "config.yaml"
    return str(read_yaml(config)["scale"]["precision"]) if config.is_file() else "fp32"


def base(folder: Path) -> str:
    """Return the base that an adapter's folder names."""
    return str(json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path"))
