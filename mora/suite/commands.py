"""PLAN=commands: what one would type for every run that is missing."""

from __future__ import annotations

import shlex

from mora.analysis.gpus import H100, Gpu
from mora.config import RunConfig, run_id

from . import fit
from .cells import resolve
from .experiment import CellSpec
from .result import done, stands


def text(grids: list[CellSpec], gpu: Gpu = H100) -> str:
    """A line a run, with the largest micro batch that fits `gpu` where none is set.

    The final runs of a cell whose search is not complete are not known yet: they are counted in a comment.
    """
    lines = [shlex.join(["python", "run.py", *words]) for words in arguments(grids, gpu).values()]
    waiting = sum(grid.exists and not resolve(grid, stands).final for grid in grids)
    more = f"# and the final runs of {waiting} cells, once these have chosen their rates: ask again then"
    return "\n".join([*lines, *([more] if waiting else [])]) or "# nothing is missing"


def arguments(grids: list[CellSpec], gpu: Gpu = H100) -> dict[str, list[str]]:
    """What run.py is given for each run that is missing and can begin now, by the run's id.

    Searches come first, then what a choice asks for beyond them, then the final runs of the cells that have chosen.
    """
    found: dict[str, list[str]] = {}
    resolved = [resolve(grid, stands) for grid in grids]
    for runs in resolved:
        for candidate, config in zip(runs.spec.candidates, runs.spec.search, strict=False):
            _add(found, config, [*runs.spec.base, *candidate.overrides, *runs.spec.at_scale.search], gpu)
    for runs in resolved:
        for config in runs.choice.more:
            _add(found, config, [*runs.spec.base, *_overrides(runs.spec, config), *runs.spec.at_scale.search], gpu)
    for runs in (runs for runs in resolved if not runs.choice.more):
        for config in runs.final:
            _add(found, config, [*runs.spec.base, *(runs.best.overrides if runs.best else ())], gpu)
    return found


def _overrides(spec: CellSpec, config: RunConfig) -> tuple[str, ...]:
    """Of the candidate whose search run this is, at whatever rate."""
    return next(
        c.overrides
        for c in spec.candidates
        if spec.run(c._replace(lr=config.lr), config.seed, searching=True) == config
    )


def _add(found: dict[str, list[str]], config: RunConfig, overrides: list[str], gpu: Gpu) -> None:
    if done(config):
        return
    size = fit.fitted(config, gpu.memory).hardware.micro_batch_size if fit.left_open(config) else None
    micro = [f"hardware.micro_batch_size={size}"] if size else []
    found.setdefault(run_id(config), [*words(config, overrides), *micro])


def words(config: RunConfig, overrides: list[str]) -> list[str]:
    """What run.py is given for a run of a cell with these overrides."""
    lr = [] if config.lr is None else [f"lr={config.lr:.10g}"]
    return [*_last_of_each(overrides), *lr, f"seed={config.seed}"]


def _last_of_each(overrides: list[str]) -> list[str]:
    """Hydra refuses a group that is given twice."""
    return list({text.split("=")[0]: text for text in overrides}.values())
