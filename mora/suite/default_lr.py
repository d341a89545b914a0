"""The learning rate of a run that names none. Imports no torch."""

from __future__ import annotations

from mora.config import RunConfig

from . import experiments
from .cell_specs import CellSpec, cell_specs
from .cells import resolve


def default_lr(config: RunConfig) -> tuple[RunConfig, str]:
    """Return the run with its learning rate, and a text that says where it comes from.

    It is the one that a search of the run's cell chose, else the middle of its grid. A cell is a task, method, rank,
    operator and model at one scale; its results are those in results/. Raises DamagedFileError if a result is damaged.
    """
    for name in experiments.names():
        experiment = experiments.load(name)
        for spec in (spec for row in cell_specs(experiment, config.scale.name) for spec in row):
            if not _may_be_cell_of(spec, config) or not spec.search_runs or not _same_cell(spec.config, config):
                continue
            search = resolve(spec)
            if search.selected is not None and search.selected.lr is not None:
                chosen = config.model_copy(update={"lr": search.selected.lr})
                return chosen, f"the best of {len(search.choice.scores)} that {name} tried at scale {config.scale.name}"
    return (
        config,
        f"the middle of the grid {', '.join(f'{lr:g}' for lr in config.lr_grid())}, none of which has been tried yet",
    )


def _may_be_cell_of(spec: CellSpec, config: RunConfig) -> bool:
    """Return whether the cell may be the run's, judged by what is known without composing it."""
    return spec.exists and (spec.column.task, spec.row.method) == (config.task.name, config.method.name)


def _same_cell(one: RunConfig, other: RunConfig) -> bool:
    def cell(run: RunConfig) -> tuple[object, ...]:
        return run.r, getattr(run.method.adapter, "operator", None), run.model.name, run.scale.name

    return cell(one) == cell(other)
