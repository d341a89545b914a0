"""`result.json` of `python -m mora.evaluate`: one model under one setting, whose tasks may come from several calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mora.config.seal import unsealed
from mora.errors import ConfigError, DamagedFileError, one_line

Result = dict[str, Any]  # model, settings, metrics by task or group, and by task what was scored, by which code, where

ELSEWHERE = "give another folder with --output"


def known(folder: Path, new: Result) -> Result | None:
    """The result in `folder`, if there is one.

    Raises: ConfigError where it is damaged, or of other weights (two runs' adapters are both called `adapter`) or settings
    than `new`.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        found = unsealed(json.loads(path.read_text()))
        model, settings = found["model"], dict(found["settings"])
        held = f"{folder} holds the scores of {model['name']!r} in {model['precision']}"
        same_weights = model["fingerprint"] == new["model"]["fingerprint"]
        found["metrics"], found["tasks"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(
            f"{path} is no result of an evaluation, or was cut ({one_line(error):.200}): {ELSEWHERE}"
        ) from error
    if not same_weights:
        raise ConfigError(f"{held}, other weights: {ELSEWHERE}")
    other = [f"{k}={settings.get(k)}, not {value}" for k, value in new["settings"].items() if settings.get(k) != value]
    if other:
        raise ConfigError(f"{held} with {'; '.join(other)}: use the same settings, or {ELSEWHERE}")
    return found


def joined(folder: Path, new: Result) -> Result:
    """`new` and the tasks that `folder` already has; one that both have, over the same documents, is `new`'s.

    Raises: ConfigError as `known`, and where a task's documents are others than before.
    """
    found = known(folder, new)
    if found is None:
        return new
    for name, task in new["tasks"].items():
        if name in found["tasks"] and found["tasks"][name]["prompts"] != task["prompts"]:
            raise ConfigError(f"{folder} holds the scores of {name} over other documents: {ELSEWHERE}")
    return found | {part: found[part] | new[part] for part in ("metrics", "tasks")}
