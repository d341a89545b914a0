"""Whether a cell's runs measure what its column shows: said before they are made, as afterwards it would be too late."""

from __future__ import annotations

from collections.abc import Sequence

from mora.config import ConfigError, RunConfig
from mora.errors import did_you_mean, nearest
from mora.evaluate import metrics

from .experiments import Column, Experiment

TASKS = "task.evaluation.tasks="


def check_column(experiment: Experiment, column: Column, config: RunConfig, overrides: Sequence[str]) -> None:
    """Raise ConfigError if nothing is measured at the column's step, or its metric is not measured or not in its unit.

    `overrides` made the run. If they name its tasks, some may have been left out on purpose, and their columns stay empty.
    """
    where = f"column {column.name}, scale {config.scale.name}"
    step, evaluation = column.step or 0, config.task.evaluation
    trains = config.knows_steps and config.method.trains
    if trains and step and (step > config.last_step or not config.measures_at(step)):
        raise ConfigError(
            f"{where}: nothing is measured at step {step} of {config.last_step}: "
            f"expected the last, one of at_steps={evaluation.at_steps}, or a multiple of {evaluation.loss_every_steps}"
        )
    if experiment.kind != "table":  # no other kind shows the metric of its columns
        return
    known = None if any(TASKS in word for word in overrides) else metrics.of_tasks(evaluation.tasks)
    if known is not None and column.metric not in known:
        meant = did_you_mean(nearest(column.metric, known))
        raise ConfigError(
            f"{where}: metric {column.metric}: runs with task.evaluation.tasks={evaluation.tasks} do not measure it: "
            f"expected one of {', '.join(sorted(known))}{meant}"
        )
    if experiment.unit == "percent" and metrics.facts(column.metric).higher_is_better is False:
        raise ConfigError(
            f"{where}: metric {column.metric}: of unit percent, which shows shares times 100, expected a metric that grows; "
            "set unit: perplexity, or unit: loss"
        )
