"""Copies of the log for people who watch a run: in TensorBoard or Weights & Biases, by rank 0 alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mora.config.run_id import run_id
from mora.config.schema import RunConfig
from mora.errors import ConfigError, one_line

Rows = list[dict[str, Any]]
EXTRA = "pip install '.[trackers]' in the checkout, or tracker=none"


def start_tracker(
    config: RunConfig, folder: Path, from_step: int, active: bool
) -> AbstractContextManager[Callable[[Rows], None]]:
    """Context manager: yield a function that takes each row of the log once. All rows are stored when the context ends.

    Args:
        config: The run.
        folder: Its folder.
        from_step: The step that a resumed run continues from.
        active: False for ranks that report nothing.

    Raises:
        ConfigError: The tracker is not installed, or W&B is not logged in or cannot be reached.
    """
    if not active or config.tracker.kind == "none":
        return nullcontext(lambda rows: None)
    return {"tensorboard": _tensorboard, "wandb": _wandb}[config.tracker.kind](config, folder, from_step)


@contextmanager
def _tensorboard(config: RunConfig, folder: Path, from_step: int) -> Iterator[Callable[[Rows], None]]:
    writer = _module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(rows: Rows) -> None:
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, row["step"])
        writer.flush()

    with writer:
        yield write


@contextmanager
def _wandb(config: RunConfig, folder: Path, from_step: int) -> Iterator[Callable[[Rows], None]]:
    name, mode = run_id(config), config.tracker.mode or "online"
    if mode == "online":
        identity: dict[str, Any] = {"id": name, "resume": "allow"}
    else:  # an offline run cannot be resumed, so each start is a W&B run of its own, and all are in one group
        identity = {"group": name}
    wandb = _module("wandb")
    try:
        run = wandb.init(
            project=config.tracker.project,
            name=name,
            dir=str(folder),
            mode=mode,
            config=config.model_dump(mode="json"),
            **identity,
        )
    except wandb.Error as error:
        raise ConfigError(
            f"tracker.kind=wandb: {one_line(error)} Or use tracker.mode=offline or tracker=none"
        ) from error

    # W&B's own step can only rise, so the evaluation with which a resumed run may begin would be lost. The price of a step
    # of our own is that those repeated, from the checkpoint to where the run was killed, are there twice, with equal values.
    run.define_metric("*", step_metric="step")

    def write(rows: Rows) -> None:
        for row in rows:
            run.log(row)

    with run:  # finishes the run, which W&B would do in Python's teardown; but ranks end without that
        yield write


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} cannot be imported ({error}): {EXTRA}") from error
