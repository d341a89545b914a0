"""PLAN=commands: what one would type for every run that is missing."""

from __future__ import annotations

import shlex

from mora.analysis.gpus import H100, Gpu
from mora.config import RunConfig, run_id

from . import fit
from .cells import resolve
from .experiment import Candidate, CellSpec
from .result import done, stands


def text(grids: list[CellSpec], gpu: Gpu = H100) -> str:
    """A line a run, with the largest micro batch that fits `gpu` where none is set.

    The final runs of a cell whose search is not complete are not known yet: they are counted in a comment.
    """
    lines: dict[str, str] = {}
    waiting = 0
    for grid in grids:
        runs = resolve(grid, stands)
        searches = zip(grid.candidates, grid.search, strict=False)
        for candidate, config in searches:
            _add(lines, config, [*grid.base, *candidate.overrides, *grid.at_scale.search], gpu)
        for config in runs.final:
            _add(lines, config, [*grid.base, *_of(runs.best)], gpu)
        waiting += bool(grid.exists and runs.best is None)
    more = f"# and the final runs of {waiting} cells, once these have chosen their rates: ask again then"
    return "\n".join([*lines.values(), *([more] if waiting else [])]) or "# nothing is missing"


def _of(candidate: Candidate | None) -> tuple[str, ...]:
    return candidate.overrides if candidate else ()


def _add(lines: dict[str, str], config: RunConfig, overrides: list[str], gpu: Gpu) -> None:
    if done(config):
        return
    lr = [] if config.lr is None else [f"lr={config.lr:.10g}"]
    size = fit.fitted(config, gpu.memory).hardware.micro_batch_size if fit.left_open(config) else None
    micro = [f"hardware.micro_batch_size={size}"] if size else []
    words = [*_last_of_each(overrides), *lr, f"seed={config.seed}", *micro]
    lines.setdefault(run_id(config), shlex.join(["python", "run.py", *words]))


def _last_of_each(overrides: list[str]) -> list[str]:
    """Hydra refuses a group that is given twice."""
    return list({text.split("=")[0]: text for text in overrides}.values())
