"""Results in doubt, which are shown all the same: those in results/doubts.yaml, and those whose losses merging raised."""

from __future__ import annotations

from collections.abc import Iterable

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mora.config import ConfigError, source
from mora.config.run_id import run_id
from mora.config.yaml_file import read_yaml
from mora.errors import one_line
from mora.evaluate.metrics import raised_by_merging
from mora.results import RunResult

from .cells import ResolvedCell

FILE = "results/doubts.yaml"


class Doubt(BaseModel):
    """Why a result is in doubt. If the run is repeated, its log has another digest, and the doubt no longer applies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    log_sha256: str
    why: str = Field(min_length=1)


def doubts(result: RunResult) -> list[str]:
    """Return why the scores of a result may not be those of its method; most results have no doubts.

    Raises:
        ConfigError: The file of doubts is invalid.
    """
    return _of(result, _named())


def _of(result: RunResult, all_named: dict[str, Doubt]) -> list[str]:
    named = all_named.get(result.run_id)
    raised: dict[str, str] = {}  # by loss; of the steps at which it was raised, the last one stays
    for step, metrics in sorted(result.metrics.items()):
        for name, (loss, after) in raised_by_merging({name: metric.value for name, metric in metrics.items()}).items():
            raised[name] = f"merging raised {name} from {loss:.4g} to {after:.4g} at step {step}"
    return [*([named.why] if named and named.log_sha256 == result.log_sha256 else []), *raised.values()]


def doubted(cells: Iterable[ResolvedCell]) -> dict[str, list[str]]:
    """Return the doubts about each doubted final run of the cells, by row, task and seed. Raises ConfigError."""
    named = _named()
    runs_of = {run_id(config): (cell.spec.label, config, result) for cell in cells for config, result in cell.results}
    return {
        f"{label}, {config.task.name}, seed {config.seed}": found
        for label, config, result in runs_of.values()
        if (found := _of(result, named))
    }


def _named() -> dict[str, Doubt]:
    path = source.ROOT / FILE
    try:
        return TypeAdapter(dict[str, Doubt]).validate_python((read_yaml(path) or {}) if path.is_file() else {})
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(
            f"{FILE}: expected a run id with log_sha256 and why for each doubt: {one_line(error):.300}"
        ) from error
