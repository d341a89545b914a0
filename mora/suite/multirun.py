"""What the runs of a Hydra multirun came to, a line each, once the last has ended."""

from __future__ import annotations

from collections.abc import Sequence

from mora.config import RunConfig
from mora.config.run_id import result_path
from mora.results import STORE, Metric, RunResult

SELECTING = ("value_nll", "validation_loss")  # what searches choose by; lower is better

Ran = tuple[Sequence[str], RunConfig]  # a run's settings as given, and what they mean


def summary(runs: Sequence[Ran]) -> str:
    """Return a line a run: the settings in which it differs from another, and its last measurements."""
    shared = set.intersection(*(set(given) for given, _ in runs))
    results = [STORE.at(result_path(config)) for _, config in runs]
    names = [" ".join(setting for setting in given if setting not in shared) for given, _ in runs]
    chosen_by = [_selecting(result) for result in results]
    best = min((value for value in chosen_by if value is not None), default=None)
    width = max(map(len, names))
    lines = [f"{len(runs)} runs:"]
    for name, result, value in zip(names, results, chosen_by, strict=True):
        lowest = "  (lowest)" if value is not None and value == best else ""
        lines.append(f"  {name:{width}}  {_measured(result)}{lowest}")
    return "\n".join(lines)


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
