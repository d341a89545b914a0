"""The result of a run: whether it is there, whether a table may take it, and whether the run is to be repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mora.config import ConfigError, RunConfig, source
from mora.config.run_id import result_path

FIELDS = (  # that a result cannot be judged or shown without
    "status",
    "metrics",
    "parameters.trainable",
    "source.dirty",
    "source.fingerprint",
    "config.scale.name",
    "config.task.name",
)


def result_of(config: RunConfig) -> dict[str, Any] | None:
    """The result of this very run, if it was made. Raises: ConfigError where its file is damaged."""
    path = result_path(config)
    return read(path) if path.is_file() else None


def read(path: Path) -> dict[str, Any]:
    """Raises: ConfigError where it is no JSON, or lacks one of FIELDS."""
    try:
        result = json.loads(path.read_text())
        for field in FIELDS:
            _at(result, field)
    except (ValueError, LookupError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it, and the run is done again") from error
    return result


def unusable(result: dict[str, Any], scale: str) -> str | None:
    """Why the result may not enter a table of this scale; None where it may: it ended, and at lite and paper its source
    is that of a commit.

    `source.dirty` says so: false at the run, or once it was verified when the result was brought in. null is not enough.
    """
    status, of, dirty = result["status"], result["config"]["scale"]["name"], result["source"]["dirty"]
    if status not in ("done", "diverged"):
        return f"it ended as {status!r}"
    if of != scale:
        return f"it is of scale {of}"
    if scale == "smoke" or dirty is False:
        return None
    return "its source was changed" if dirty else "its commit is not known; scripts/collect_results.py looks for it"


def usable(result: dict[str, Any] | None, scale: str) -> dict[str, Any] | None:
    """The result, if it may enter a table of this scale."""
    return None if result is None or unusable(result, scale) else result


def stands(result: dict[str, Any] | None, scale: str) -> bool:
    """Whether the run is not to be repeated: its result is usable, or a repetition would be no better, since the source
    here is changed (or of no known commit) too and is the one that made it.

    So a suite on changed source ends, and repeats a result once the source is another one, or is committed.
    """
    if result is None:
        return False
    if usable(result, scale):
        return True
    here, made = source.of_this_process(), result["source"]
    same = here["dirty"] is not False and here["fingerprint"] == made["fingerprint"]
    return same and unusable(result | {"source": made | {"dirty": False}}, scale) is None


def done(config: RunConfig) -> bool:
    """Whether the run has a result that stands."""
    return stands(result_of(config), config.scale.name)


def _at(result: Any, field: str) -> Any:
    for name in field.split("."):
        if not isinstance(result, dict) or name not in result:
            raise LookupError(f"no field {field}")
        result = result[name]
    return result
