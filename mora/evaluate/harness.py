"""lm-eval, in process, on a model in memory, with the task files in the folder beside this module."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mora.errors import ConfigError, did_you_mean, nearest

from .aggregate import majority_baseline, standard_error
from .logged import LoggedSamples
from .metrics import DOCUMENTS, FLOOR, IF_ANSWERED, STDERR, key
from .metrics import facts as metric_facts
from .response_cache import ResponseCache
from .window import PROMPT_TOKENS, positions

TASKS = Path(__file__).parent / "tasks"

TaskScores = dict[str, dict[str, float]]  # task -> metric and metric_stderr


@dataclass(frozen=True)
class Settings:
    """The settings that are equal for all models to be compared, and the places of data and progress.

    Attributes:
        metadata: Passed to the data loaders of the tasks.
        limit: If set, only the first `limit` documents of each task are scored.
        response_cache: A file of answers. Batches answered there under the same `identity` are not computed again.
        max_length: The most tokens of prompt and answer together. For long answers there may be more, up to `length_limit`.
    """

    batch_size: int
    max_length: int = 2048
    length_limit: int | None = None
    limit: int | None = None
    data_dir: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    response_cache: Path | None = None
    identity: str = ""

    def resumable(self, response_cache: Path, identity: str) -> Settings:
        """Return the settings with progress kept in the file `response_cache`."""
        return replace(self, response_cache=response_cache, identity=identity)

    def within(self, model: torch.nn.Module) -> Settings:
        """Return the settings adapted to the model. If it has fewer positions, print that and what follows from it."""
        there = positions(model)
        if there is None or there >= (self.length_limit or self.max_length + PROMPT_TOKENS):
            return self
        print(
            f"the model has {there} positions: longer prompts are cut at the left, and generated answers have "
            f"at most {there // 2} tokens",
            file=sys.stderr,
            flush=True,
        )
        return replace(self, max_length=min(self.max_length, there), length_limit=there)


def evaluate_model(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: list[str], settings: Settings, loaded: Any = None
) -> tuple[TaskScores, dict[str, LoggedSamples]]:
    """Score tasks and groups of lm-eval and of this suite, with standard errors; also return every scored document.

    Beside a task's scores there are `documents` and, for multiple choice, `floor`, the score of the best constant answer.
    A group's score is the plain mean of its tasks' scores, with the error for independent tasks. The caller's random state
    and the model's mode are restored. Call this under autocast if the weights are wider than the compute dtype. `loaded` is
    what `load_tasks` returned for the same settings; it can be scored once.

    Raises:
        ConfigError: A task is unknown.
        DataError: Data are missing or wrong.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval.evaluator import evaluate

    from .backend import Backend

    given, settings = settings, settings.within(model)
    if loaded is None or settings.max_length != given.max_length:
        loaded = load_tasks(tasks, tokenizer, settings)
    window = f"{settings.max_length}" + (f" {settings.length_limit}" if settings.length_limit else "")
    response_cache = ResponseCache(settings.response_cache, f"{settings.identity}|{settings.batch_size}|{window}")
    was_training = model.training
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        result: Any = evaluate(  # simple_evaluate would each time run pip and compilers for a report that is not kept
            Backend(model, tokenizer, settings.batch_size, settings.max_length, response_cache, settings.length_limit),
            loaded,
            limit=settings.limit,
            bootstrap_iters=0,
            fewshot_as_multiturn=True,
        )
    model.train(was_training)
    logged = {name: logged_samples(name, result) for name in result["samples"]}
    metrics = {
        name: _with_errors(result["results"][name], logged[name]) | _sample_facts(logged[name]) for name in logged
    }
    for group, members in result["group_subtasks"].items():
        if members:
            metrics[group] = average([metrics[member] for member in members if member in metrics])
    return {name: values for name, values in metrics.items() if values}, logged


def load_tasks(tasks: list[str], tokenizer: PreTrainedTokenizerBase, settings: Settings) -> Any:
    """Load the tasks with their documents, and with examples only if their files ask for them.

    Raises the errors of `evaluate_model`.
    """
    loaded = task_manager(tasks, tokenizer, settings).load(tasks)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(None)
    return loaded


def check_names(tasks: list[str]) -> None:
    """Raise ConfigError, before anything is loaded, if neither this suite nor lm-eval has a task of some name."""
    _manager(tasks)


def task_manager(tasks: list[str], tokenizer: PreTrainedTokenizerBase, settings: Settings) -> Any:
    """Return a task manager with this suite's tasks. lm-eval's catalogue, which takes seconds, is added only if needed.

    Raises:
        ConfigError: Neither has a task of some name.
    """
    metadata = {"data_dir": settings.data_dir, "tokenizer": tokenizer, "max_length": settings.max_length}
    return _manager(tasks, metadata | settings.metadata)


def _manager(tasks: list[str], metadata: dict[str, Any] | None = None) -> Any:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    ours = sorted(manager.all_tasks)
    if not set(tasks) <= set(ours):
        manager = TaskManager(include_path=str(TASKS), metadata=metadata)
        if unknown := sorted(set(tasks) - set(manager.all_tasks)):
            meant = did_you_mean(nearest(unknown[0], ours) or nearest(unknown[0], manager.all_tasks))
            raise ConfigError(f"tasks={unknown}: not known to lm-eval{meant}; ours are {', '.join(ours)}")
    return manager


def logged_samples(name: str, result: dict[str, Any]) -> LoggedSamples:
    """Return lm-eval's samples of a task with what is kept of them: identity, answer and score."""
    metadata = result["configs"][name].get("metadata") or {}
    samples = result["samples"][name]
    rows = []
    for sample in samples:
        doc = sample["doc"]
        rows.append(
            {
                "id": sample["doc_id"],
                "hash": sample["doc_hash"][:16],
                "cluster": doc.get("cluster"),
                "group": doc.get("group"),
                "gold": sample["target"],
                "response": sample["filtered_resps"],
                "filter": sample.get("filter", "none"),
                **{metric: sample[metric] for metric in sample["metrics"]},
            }
        )
    prompts = hashlib.sha256(json.dumps([sample["prompt_hash"] for sample in samples]).encode()).hexdigest()
    header = {
        "task": name,
        "version": result["versions"].get(name),
        "aggregation": metadata.get("aggregation", "mean"),
        "headline": metadata.get("headline", "score"),
        "prompts": prompts[:16],
        "documents": len({row["id"] for row in rows}),
    }
    return LoggedSamples(header, rows)


def average(members: list[dict[str, float]]) -> dict[str, float]:
    """Return the plain means of `score` and `floor`, with the error for independent tasks; {} if a member has no score."""
    if not members or any("score" not in member for member in members):
        return {}
    errors = [member[f"score{STDERR}"] for member in members]
    averaged = {
        "score": sum(member["score"] for member in members) / len(members),
        f"score{STDERR}": sum(e * e for e in errors) ** 0.5 / len(members),
    }
    if all(DOCUMENTS in member for member in members):
        averaged[DOCUMENTS] = sum(member[DOCUMENTS] for member in members)
    if all(FLOOR in member for member in members):
        averaged[FLOOR] = sum(member[FLOOR] for member in members) / len(members)
    return averaged


def _sample_facts(logged: LoggedSamples) -> dict[str, float]:
    """Return the number of scored documents, and the score of a model that knows nothing.

    The latter is the score of the best constant answer in multiple choice, else what the task says. If some texts contain
    no answer, the score over those that do is added.
    """
    facts = {DOCUMENTS: float(logged.header["documents"])}
    if (
        logged.rows
        and "answered" in logged.rows[0]
        and (answered := [row["score"] for row in logged.rows if row["answered"]])
    ):
        facts[IF_ANSWERED] = sum(answered) / len(answered)
        facts[f"{IF_ANSWERED}{STDERR}"] = standard_error("mean", answered)
    if logged.rows and {"acc_sum", "score"} <= logged.rows[0].keys():
        rows = [row for row in logged.rows if row["filter"] == logged.rows[0]["filter"]]
        gold, items = [row["gold"] for row in rows], [row["score"] for row in rows]
        facts[FLOOR] = majority_baseline(logged.header["aggregation"], gold, items)
    elif (known := metric_facts(key(logged.header["task"], logged.header["headline"])).floor) is not None:
        facts[FLOOR] = known
    return facts


def _with_errors(values: dict[str, Any], logged: LoggedSamples) -> dict[str, float]:
    """Return lm-eval's values, named `metric` or `metric:filter`, with this suite's standard errors."""
    out = {}
    for name, value in values.items():
        metric, _, chosen = name.partition(",")
        rows = [row for row in logged.rows if row["filter"] == (chosen or "none")]
        if not isinstance(value, (int, float)) or not rows or metric not in rows[0]:
            continue
        named = metric if chosen == "none" else f"{metric}:{chosen}"
        aggregation = logged.header["aggregation"] if metric == "score" else "mean"
        clusters = [row["cluster"] for row in rows]
        clustered = None if clusters[0] is None else clusters
        out[named] = float(value)
        out[f"{named}{STDERR}"] = standard_error(aggregation, [row[metric] for row in rows], clustered)
    return out
