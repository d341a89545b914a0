"""The summary of a Hydra multirun, one line per run, printed once the last run has ended."""

from __future__ import annotations

from collections.abc import Sequence

from mora.config import RunConfig
from mora.config.run_id import result_path
from mora.results import STORE, Metric, RunResult

SELECTING = ("value_nll", "validation_loss")  # the metrics by which searches choose; lower is better

Ran = tuple[Sequence[str], RunConfig]  # a run's settings as given, and the configuration that they make


def summary(runs: Sequence[Ran]) -> str:
    """Return one line per run: those of its settings that not all runs have, and its last measurements."""
    shared = set.intersection(*(set(given) for given, _ in runs))
    results = [STORE.at(result_path(config)) for _, config in runs]
    names = [" ".join(setting for setting in given if setting not in shared) for given, _ in runs]
    losses = [_selecting(result) for result in results] if _comparable(runs, results) else [None] * len(runs)
    best = min((loss for loss in losses if loss is not None), default=None)
    width = max(map(len, names))
    lines = [f"{len(runs)} runs:"]
    for name, result, loss in zip(names, results, losses, strict=True):
        lowest = "  (lowest)" if loss is not None and loss == best else ""
        lines.append(f"  {name:{width}}  {_measured(result)}{lowest}")
    return "\n".join(lines)


def _comparable(runs: Sequence[Ran], results: Sequence[RunResult | None]) -> bool:
    """Return whether the losses have one task, model, scale and metric, and the runs differ in more than the seed."""
    kinds = {(config.task.name, config.model.name, config.scale.name) for _, config in runs}
    metrics = {name for result in results for name in SELECTING if name in _last(result)}
    chosen = {tuple(setting for setting in given if not setting.startswith("seed=")) for given, _ in runs}
    return len(kinds) == 1 and len(metrics) == 1 and len(chosen) > 1


def _last(result: RunResult | None) -> dict[str, Metric]:
    return result.metrics[max(result.metrics)] if result is not None and result.metrics else {}


def _selecting(result: RunResult | None) -> float | None:
    if result is None or result.status != "done":
        return None
    return next((_last(result)[name].value for name in SELECTING if name in _last(result)), None)


def _measured(result: RunResult | None) -> str:
    if result is None:
        return "no result"
    if result.status != "done":
        return result.status
    shown = {name: m.value for name, m in _last(result).items() if name in SELECTING or name.endswith(".score")}
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items()) or "no measurement"
