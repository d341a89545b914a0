"""PLAN=commands: print the command line of every missing run."""

from __future__ import annotations

import shlex

from mora.config import RunConfig, run_id
from mora.planner.gpus import H100, Gpu

from . import micro_batch
from .cell_specs import CellSpec
from .cells import in_order, resolve
from .usable import done, is_current


def text(specs: list[CellSpec], gpu: Gpu = H100) -> str:
    """Return a command line per missing run, with the largest micro batch that fits `gpu` if none is set.

    If the search of a cell is not complete, its final runs are not known yet; a comment gives the number of such cells.
    """
    lines = [shlex.join(["python", "run.py", *words]) for words in arguments(specs, gpu).values()]
    waiting = sum(spec.exists and not resolve(spec, is_current).final_runs for spec in specs)
    more = (
        f"# and the final runs of {waiting} cells, whose learning rates these searches choose: repeat this command then"
    )
    return "\n".join([*lines, *([more] if waiting else [])]) or "# nothing is missing"


def arguments(specs: list[CellSpec], gpu: Gpu = H100) -> dict[str, list[str]]:
    """Return, by run id, the arguments of run.py for each missing run that can start now, in the order of `in_order`."""
    words_of: dict[str, list[str]] = {}
    for run in in_order([resolve(spec, is_current) for spec in specs]):
        if run_id(run.config) not in words_of and not done(run.config):
            words_of[run_id(run.config)] = [*words(*run), *_micro_batch(run.config, gpu)]
    return words_of


def _micro_batch(config: RunConfig, gpu: Gpu) -> list[str]:
    """Return the override that sets the largest micro batch that fits, if the run leaves it open."""
    size = micro_batch.fitted(config, gpu.memory).hardware.micro_batch_size if micro_batch.left_open(config) else None
    return [f"hardware.micro_batch_size={size}"] if size else []


def words(config: RunConfig, overrides: list[str]) -> list[str]:
    """Return the arguments of run.py for a run of a cell with these overrides."""
    lr = [] if config.lr is None else [f"lr={config.lr:.10g}"]
    return [*_last_of_each(overrides), *lr, f"seed={config.seed}"]


def _last_of_each(overrides: list[str]) -> list[str]:
    """Keep the last choice of each group, since Hydra refuses a group that is given twice."""
    return list({text.split("=")[0]: text for text in overrides}.values())
