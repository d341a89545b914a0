"""Facts about metrics, from their tasks: whether higher is better, and the floor. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mora.config.yaml_file import SafeLoader

TASKS = Path(__file__).parent / "tasks"
LOSSES = {"validation_loss": False, "value_nll": False, "value_token_acc": True}  # measured during a run; not of a task
MERGED = "merged_"  # prefix of a loss of the merged model, which is the model that tasks score
MERGE_SHARE, MERGE_NATS = 0.1, 0.05  # merging may raise a loss by this share of it, or by these nats if they are more
IF_ANSWERED = "score_if_answered"  # the score over texts with an answer; as these may be few, it has no direction
# The names in a row of a log are task.metric, task.metric_stderr, task.documents, task.floor, ...
STDERR, DOCUMENTS, FLOOR = "_stderr", "documents", "floor"


class Facts(NamedTuple):
    """Facts about a metric. A fact that is not known is None."""

    higher_is_better: bool | None
    floor: float | None


def facts(name: str) -> Facts:
    """Return the facts of `task.metric`, a group's score, a metric named after its task, or a loss measured during a run."""
    if (loss := name.removeprefix(MERGED)) in LOSSES:
        return Facts(LOSSES[loss], None)
    return _known().get(name.partition(":")[0], Facts(None, None))


class LoggedMetric(NamedTuple):
    """A metric with what its row says about it. The fields are those of `mora.results.Metric`."""

    value: float
    stderr: float | None
    documents: float | None
    higher_is_better: bool | None
    floor: float | None


def write_row(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return scores (task -> metric -> value) as a row of a log. `read_row` is the inverse."""
    return {key(task, metric): value for task, values in scores.items() for metric, value in values.items()}


def read_row(row: Mapping[str, Any]) -> dict[str, LoggedMetric]:
    """Return the metrics in a row of a log. Their errors, documents and floors have names of their own there."""
    return {name: _measured(name, row) for name in row if is_metric(name)}


def is_metric(name: str) -> bool:
    """Return whether an entry of a row is a metric, and not a fact about one."""
    return name != DOCUMENTS and not name.endswith((STDERR, f".{DOCUMENTS}", f".{FLOOR}"))


def _measured(name: str, row: Mapping[str, Any]) -> LoggedMetric:
    task, dot, metric = name.partition(".")
    about, error = facts(name), row.get(f"{name}{STDERR}")
    documents = row.get(f"{task}.{DOCUMENTS}" if dot else DOCUMENTS) if f"{name}{STDERR}" in row else None
    floor = row.get(f"{task}.{FLOOR}") if metric == "score" else None
    return LoggedMetric(row[name], error, documents, about.higher_is_better, about.floor if floor is None else floor)


def raised_by_merging(metrics: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Return, before and after, each loss that merging has raised noticeably or made NaN."""
    losses = [name for name, higher_is_better in LOSSES.items() if not higher_is_better and MERGED + name in metrics]
    both = {name: (metrics[name], metrics[MERGED + name]) for name in losses}
    return {
        name: (loss, after)
        for name, (loss, after) in both.items()
        if math.isfinite(loss) and not after <= loss + max(MERGE_SHARE * loss, MERGE_NATS)
    }


def companion_task(task: str) -> str | None:
    """Return the task whose score is shown beside this task's, as this task's file says; None if it names none."""
    return _about(task).get("beside")


def documents_of(task: str) -> str:
    """Return the name of the documents that a task scores. Tasks whose files give the same name score the same documents."""
    return str(_about(task).get("documents", task))


def key(task: str, metric: str) -> str:
    """Return a metric's name in a run: `task.metric`, or the metric's own name if it begins with the task's."""
    return metric if metric.startswith(f"{task}_") else f"{task}.{metric}"


def members(task: str) -> list[str]:
    """Return the tasks of a group, else the task itself."""
    groups = {values["group"]: values["task"] for values in _files() if "group" in values}
    return groups.get(task, [task])


def of_tasks(tasks: Iterable[str]) -> set[str] | None:
    """Return the metrics of a run that scores these tasks or groups, losses included; None if one has no file here."""
    scored = {name for task in tasks for name in (task, *members(task))}
    listed = {v["task"]: v["metric_list"] for v in _files() if "metric_list" in v}
    groups = {v["group"] for v in _files() if "group" in v}
    if not scored <= listed.keys() | groups:
        return None
    named = {key(task, entry["metric"]) for task in scored & listed.keys() for entry in listed[task]}
    return {*LOSSES, *(MERGED + loss for loss in LOSSES), *named, *(f"{group}.score" for group in scored & groups)}


def _about(task: str) -> dict[str, Any]:
    """Return the `metadata` of a task's file; empty if it has none, or no file has the task."""
    return next((values.get("metadata") or {} for values in _files() if values.get("task") == task), {})


@lru_cache
def _files() -> list[dict[str, Any]]:
    return [_read(path) for path in sorted(TASKS.rglob("*.yaml"))]


@lru_cache
def _known() -> dict[str, Facts]:
    files = _files()
    facts: dict[str, Facts] = {}
    for values in (v for v in files if "metric_list" in v):
        about = values.get("metadata") or {}
        for entry in values["metric_list"]:
            scored = entry["metric"] == about.get("headline", "score")
            floor = about.get("floor") if scored else None
            facts[key(values["task"], entry["metric"])] = Facts(entry["higher_is_better"], floor)
    for values in (v for v in files if "group" in v):
        members = [facts.get(f"{member}.score", Facts(None, None)) for member in values["task"]]
        floors = [member.floor for member in members]
        floor_of_group = sum(f for f in floors if f is not None) / len(floors) if None not in floors else None
        facts[f"{values['group']}.score"] = Facts(members[0].higher_is_better, floor_of_group)
    return facts


def _read(path: Path) -> dict[str, Any]:
    """Read a task file, whose values override those of the files that it includes."""
    values: dict[str, Any] = yaml.load(path.read_text(), _Loader) or {}
    included = values.pop("include", None)
    return values if included is None else _read(path.parent / included) | values


class _Loader(SafeLoader):  # type: ignore[misc]
    """A YAML loader that accepts lm-eval's !function tags without importing what they name."""


_Loader.add_constructor("!function", lambda loader, node: node.value)
