"""What a checkpoint of a run holds, and whether a run may resume from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mora.config.run_id import run_id
from mora.config.schema import RunConfig
from mora.config.source import of_this_process
from mora.errors import ConfigError, DamagedFileError

from . import checkpoint
from .checkpoint_writer import CheckpointWriter
from .distributed import all_gather_value, rank, world_size
from .interface import Engine
from .restart import RunRestarts


def save_run(
    writer: CheckpointWriter, done: int, engine: Engine, restarts: RunRestarts, config: RunConfig, log: str
) -> None:
    """Begin to save everything that the next steps depend on, but data and dropout, which are functions of the step.

    The sums of the restarts are not copied, so the next restart waits for the writer.
    """
    of_run = {
        "restart": restarts.state_dict(),
        "run_id": run_id(config),
        "source": of_this_process()["fingerprint"],
        "log": log,
        "ranks": world_size(),
    }
    writer.wait()  # or two copies of the state would be in memory
    state = engine.state_dict() | of_run
    if rank() == 0:
        writer.write(done, state)


def resume_run(folder: Path, engine: Engine, restarts: RunRestarts, config: RunConfig) -> tuple[int, str]:
    """Load the newest intact checkpoint, if there is one; return the number of steps done, and their log.

    Raises:
        DamagedFileError: The checkpoint is of another run or of other code.
        ConfigError: The ranks see different checkpoints, the checkpoint lacks a field, or dropout forbids another number
            of ranks.
    """
    state = checkpoint.load_latest(folder)
    start = 0 if state is None else state["step"]
    if len(set(all_gather_value(start))) > 1:
        raise ConfigError(
            f"the ranks find checkpoints of steps {all_gather_value(start)} in {folder}: they must share the folder"
        )
    if state is None:
        return 0, ""
    _check_is_of_this_run(state, folder, config)
    restarts.load_state_dict(state["restart"])
    engine.load_state_dict(state)
    restarts.resume(start)
    return start, state["log"]


def _check_is_of_this_run(state: dict[str, Any], folder: Path, config: RunConfig) -> None:
    """Raise the errors of `resume_run` that a checkpoint's content gives rise to.

    A checkpoint holds whole tensors, so the number of ranks may change unless each rank draws random numbers of its own
    (dropout). Except at scale smoke, the code must be the same; else no single commit would have made the result.
    """
    if missing := {"run_id", "source", "restart", "log", "ranks"} - state.keys():
        raise ConfigError(
            f"{folder} holds a checkpoint without {', '.join(sorted(missing))}, of another version of the code or of "
            "something else: remove the folder to start over"
        )
    if state["run_id"] != run_id(config):
        raise DamagedFileError(
            f"{folder} holds a checkpoint of {state['run_id']}, not of {run_id(config)}: start the changed run with "
            "run.py, which gives it its own folder"
        )
    if (before := state["ranks"]) != world_size() and (drops := _dropout(config)):
        raise ConfigError(
            f"{folder} holds a checkpoint of {before} ranks, now there are {world_size()}, and {drops}: each rank draws "
            f"its own masks, so the run would differ; resume with {before}, or remove the folder to start over"
        )
    code = of_this_process()["fingerprint"]
    if state["source"] != code and config.scale.name != "smoke":
        raise DamagedFileError(
            f"{folder} holds a checkpoint made by other code (fingerprint {state['source']}, now {code}): resume "
            "with the commit that it was started from, or remove the folder to start over"
        )


def _dropout(config: RunConfig) -> str | None:
    """Return the method's setting for dropout, as text; None if it has no dropout."""
    dropouts = config.method.adapter.dropouts if config.method.adapter else {}
    return next((f"method.adapter.{name}={value}" for name, value in dropouts.items()), None)
