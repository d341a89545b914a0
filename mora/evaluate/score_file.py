"""The `result.json` of `python -m mora.evaluate`: the scores of one model under the same settings, from one or more calls.

The result of a training run is another file, see `mora/results.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mora.config.seal import unsealed
from mora.errors import ConfigError, DamagedFileError, one_line

Result = dict[str, Any]  # model, settings, metrics by task or group; by task, the documents, the code and the machine

ELSEWHERE = "give another folder with --output"


def known(folder: Path, new: Result) -> Result | None:
    """Return the result in `folder`, if there is one.

    Raises:
        ConfigError: It is damaged, or has other weights or settings than `new`. (Two runs' adapters are both called
            `adapter`.)
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = unsealed(json.loads(path.read_text()))
        model, settings = result["model"], dict(result["settings"])
        held = f"{folder} holds the scores of {model['name']!r} in {model['precision']}"
        same_weights = model["fingerprint"] == new["model"]["fingerprint"]
        result["metrics"], result["tasks"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(
            f"{path} is not an evaluation result, or is truncated ({one_line(error):.200}): {ELSEWHERE}"
        ) from error
    if not same_weights:
        raise ConfigError(f"{held}, other weights: {ELSEWHERE}")
    other = [f"{k}={settings.get(k)}, not {value}" for k, value in new["settings"].items() if settings.get(k) != value]
    if other:
        raise ConfigError(f"{held} with {'; '.join(other)}: use the same settings, or {ELSEWHERE}")
    return result


def joined(folder: Path, new: Result) -> Result:
    """Return `new` with the tasks that `folder` already has.

    A task that both have, over the same documents, is taken from `new`.

    Raises:
        ConfigError: As for `known`; or a task's documents differ from those before.
    """
    earlier = known(folder, new)
    if earlier is None:
        return new
    for name, task in new["tasks"].items():
        if name in earlier["tasks"] and earlier["tasks"][name]["prompts"] != task["prompts"]:
            raise ConfigError(f"{folder} holds the scores of {name} over other documents: {ELSEWHERE}")
    return earlier | {part: earlier[part] | new[part] for part in ("metrics", "tasks")}
