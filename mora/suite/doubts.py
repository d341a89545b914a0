"""Results that are shown and doubted: those that results/doubts.yaml names, and those whose losses merging raised."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from mora.config import source
from mora.config.yaml_file import read_yaml
from mora.evaluate.metrics import raised_by_merging
from mora.results import RunResult

from .cells import CellRuns

FILE = "results/doubts.yaml"  # run id: why


def doubts(result: RunResult) -> list[str]:
    """Return why the scores of a result may not be those of its method; most results have no doubts."""
    listed = _listed(source.ROOT / FILE)
    raised = {
        name: f"merging raised {name} from {loss:.4g} to {after:.4g} at step {step}"
        for step, metrics in result.metrics.items()
        for name, (loss, after) in raised_by_merging({name: metric.value for name, metric in metrics.items()}).items()
    }  # the last such step
    return [*([listed[result.run_id]] if result.run_id in listed else []), *raised.values()]


def doubted(cells: Iterable[CellRuns]) -> dict[str, list[str]]:
    """Return the doubts of each doubted result in the cells, by its row and seed."""
    results = {
        f"{runs.spec.label}, seed {config.seed}": doubts(result) for runs in cells for config, result in runs.results
    }
    return {name: found for name, found in results.items() if found}


@lru_cache
def _listed(path: Path) -> dict[str, str]:
    return read_yaml(path) if path.is_file() else {}
