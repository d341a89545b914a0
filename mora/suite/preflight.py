"""Checks before a run is started or its result is returned: whether what it names is here.

Imports no torch, except for the shape of a model that is given as a folder.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from mora.config import ConfigError, RunConfig
from mora.config.model_schema import Model
from mora.config.run_id import result_path, run_id
from mora.errors import short
from mora.io import obstacle
from mora.planner.gpus import GIB
from mora.results import RunResult

from .gpus import visible


def check(config: RunConfig) -> None:
    """Raise ConfigError if this machine lacks the hardware, the weights or the folder of results that the run names."""
    _check_results(config)
    hardware, path = config.hardware, config.model.path
    if hardware.device == "cuda" and hardware.rendezvous != "slurm" and (there := len(visible())) < hardware.processes:
        seen = f"there are {there}" if there else "there is no GPU"
        raise ConfigError(
            f"hardware.device='cuda', hardware.processes={hardware.processes} (hardware={hardware.name}): {seen} here; use "
            "hardware=auto or hardware=cpu, or another number of processes"
        )
    if path is not None and config.model.source == "gguf":  # now, before a cached copy or a result is taken for it
        from mora.models import files

        files.check(config.model, files.find(config.model))
    elif path is not None and _is_local(path) and not Path(path).exists():
        raise ConfigError(f"model.path={path!r} does not exist: expected the folder of a checkpoint, or a hub id")


def _check_results(config: RunConfig) -> None:
    """Raise ConfigError if there is no result and none could be written, which the run would meet at its end."""
    path, given = result_path(config), f"scale.results_dir={short(repr(config.scale.results_dir))}"
    try:
        there = obstacle(path.parent)
    except OSError as error:
        raise ConfigError(f"{given}: {error.strerror}; expected a folder") from error
    if there and not os.path.isfile(path):
        raise ConfigError(f"{given}: expected a folder that can be written or made; {there} is none")


def check_room(config: RunConfig, folder: Path) -> None:
    """Raise ConfigError if the disk of the run's folder has no room for its checkpoints and what it leaves.

    What the folder holds already counts as room. Nothing is checked if the model's shape is not known.
    """
    from mora.planner.storage import storage

    try:
        needed = storage(config).least(several_checkpoints=_writes_several_checkpoints(config))
    except ValueError:  # a shape or method that the plan cannot count
        return
    there = shutil.disk_usage(folder).free + _held_bytes(folder)
    if there < needed:
        raise ConfigError(
            f"{folder}: its disk has room for {there / GIB:.1f} GiB, and checkpoints and weights of {run_id(config)} need "
            f"{needed / GIB:.1f} GiB: remove what is not needed there, or set MORA_OUTPUT_DIR to a folder with more room"
        )


def _held_bytes(folder: Path) -> int:
    """Return the bytes of the files in a folder. Other processes may remove some meanwhile; a link's target is elsewhere."""
    held = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                held += os.lstat(os.path.join(where, name)).st_size
    return held


def _writes_several_checkpoints(config: RunConfig) -> bool:
    return not config.knows_steps or sum(map(config.saves_at, range(1, config.last_step + 1))) > 1


def unlike(config: RunConfig, result: RunResult) -> str | None:
    """Return how the files here differ from those that made the result of this run id, and what to do.

    None if they agree, or are not here; a file that was given by an absolute path must still exist.
    """
    if reason := _other_weights(config.model, result):
        return f"{reason}; give another model a name of its own (model.name=...)"
    return _other_files(result)


def _other_weights(model: Model, result: RunResult) -> str | None:
    from mora.train.input_digests import digest

    if model.source != "pretrained":
        return None
    was, now = result.config["model"].get("path"), digest(model)
    recorded = result.data.get("model", {}).get("sha256")
    if (
        recorded is None or now is None
    ):  # the path is a hub id, whose revision is in the run's id, or the result did not record a digest
        return None if model.path == was else f"its model.path was {was!r}, now it is {model.path!r}"
    return (
        None
        if now == recorded
        else f"model.path={model.path!r} does not hold the weights that the result was made with"
    )


def _other_files(result: RunResult) -> str | None:
    from mora.data import sources

    groups = result.data.get("fingerprints", {}).get("sources", {})
    for facts in (facts for group in groups.values() for facts in group if "files" in facts):
        digests = sources.digests(sources.match(facts["files"]))
        if not digests and Path(facts["files"]).is_absolute():
            return f"{facts['files']} no longer exists; put it back"
        if digests and digests != facts["sha256"]:
            return f"{facts['files']} has changed since the result was made; give other rows a file name of their own"
    return None


def _is_local(path: str) -> bool:
    """Return whether the path is not a hub id, which is NAME or OWNER/NAME."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1
