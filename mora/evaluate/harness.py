"""lm-eval, in process, on a model in memory, with the task files beside this one."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mora.errors import ConfigError

from .aggregate import floor, standard_error
from .kept import Kept
from .metrics import facts as facts_of
from .metrics import key
from .response_cache import ResponseCache
from .window import PROMPT_TOKENS, positions

TASKS = Path(__file__).parent / "tasks"

Metrics = dict[str, dict[str, float]]  # task -> metric and metric_stderr


@dataclass(frozen=True)
class Settings:
    """What is equal for all models that are to be compared, and where data and progress lie.

    `metadata` reaches the data loaders of the tasks. `limit` takes the first documents of each task. With `journal`, batches
    already answered under the same `identity` are not computed again. `max_length`: tokens of prompt and answer; where an
    answer may be long, more are taken, but never more than `most`.
    """

    batch_size: int
    max_length: int = 2048
    most: int | None = None
    limit: int | None = None
    data_dir: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    journal: Path | None = None
    identity: str = ""

    def resumable(self, journal: Path, identity: str) -> Settings:
        """The same, with progress kept in `journal`."""
        return replace(self, journal=journal, identity=identity)

    def within(self, model: torch.nn.Module) -> Settings:
        """The same, for a model that may have fewer positions. Says so, and what follows from it."""
        there = positions(model)
        if there is None or there >= (self.most or self.max_length + PROMPT_TOKENS):
            return self
        print(
            f"the model has {there} positions: a prompt is cut at the left where it and its answer have more; an answer to "
            f"be written has at most {there // 2}",
            file=sys.stderr,
            flush=True,
        )
        return replace(self, max_length=min(self.max_length, there), most=there)


def evaluate_model(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: list[str], settings: Settings
) -> tuple[Metrics, dict[str, Kept]]:
    """Scores of lm-eval's and our tasks and groups, with standard errors, and every scored document.

    Beside a task's scores: `documents`, and for multiple choice `floor`, the score of the best constant answer. A group's
    score is the plain mean of its tasks' (errors added as of independent tasks). The caller's random state and the model's
    mode are left as they were. Call it under autocast where the weights are wider than the compute dtype.

    Raises: ConfigError for an unknown task, DataError for data that are missing or wrong.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval.evaluator import evaluate

    from .backend import Backend

    settings = settings.within(model)
    manager = task_manager(tasks, tokenizer, settings)
    window = f"{settings.max_length}" + (f" {settings.most}" if settings.most else "")
    journal = ResponseCache(settings.journal, f"{settings.identity}|{settings.batch_size}|{window}")
    was_training = model.training
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        result = evaluate(
            lm=Backend(model, tokenizer, settings.batch_size, settings.max_length, journal, settings.most),
            task_dict=_loaded(manager, tasks),
            limit=settings.limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    model.train(was_training)
    kept = {name: keep(name, result) for name in result["samples"]}
    metrics = {name: _with_errors(result["results"][name], kept[name]) | _facts(kept[name]) for name in kept}
    for group, members in result["group_subtasks"].items():
        if members:
            metrics[group] = average([metrics[member] for member in members if member in metrics])
    return {name: values for name, values in metrics.items() if values}, kept


def _loaded(manager: Any, tasks: list[str]) -> Any:
    """The tasks as lm-eval's `simple_evaluate` makes them ready. That would also seed every random generator, and ask pip
    and the system, for seconds, what is installed."""
    loaded = manager.load(tasks)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=None)
    return loaded


def check_names(tasks: list[str]) -> None:
    """Before anything is loaded. Raises: ConfigError for a name that neither we nor lm-eval have."""
    _manager(tasks)


def task_manager(tasks: list[str], tokenizer: PreTrainedTokenizerBase, settings: Settings) -> Any:
    """Our tasks, and lm-eval's own catalogue (seconds to index) only where a name is not ours.

    Raises: ConfigError for a name that neither knows.
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
            near = get_close_matches(unknown[0], ours, 1) or get_close_matches(unknown[0], manager.all_tasks, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"tasks={unknown}: not known to lm-eval{meant}; ours are {', '.join(ours)}")
    return manager


def keep(name: str, result: dict[str, Any]) -> Kept:
    """What is worth keeping of lm-eval's samples: what identifies, what was said, what was scored."""
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
    return Kept(header, rows)


def average(members: list[dict[str, float]]) -> dict[str, float]:
    """The plain mean of `score` and of `floor`, the error for independent tasks. Empty where a member has no score."""
    if not members or any("score" not in member for member in members):
        return {}
    errors = [member["score_stderr"] for member in members]
    averaged = {
        "score": sum(member["score"] for member in members) / len(members),
        "score_stderr": sum(e * e for e in errors) ** 0.5 / len(members),
    }
    if all("documents" in member for member in members):
        averaged["documents"] = sum(member["documents"] for member in members)
    if all("floor" in member for member in members):
        averaged["floor"] = sum(member["floor"] for member in members) / len(members)
    return averaged


def _facts(kept: Kept) -> dict[str, float]:
    """How many documents were scored, and what a model that knows nothing scores: in multiple choice the best constant
    answer, else what the task says; where some texts hold no answer, the score among those that do."""
    facts = {"documents": float(kept.header["documents"])}
    if kept.rows and "answered" in kept.rows[0] and (told := [row["score"] for row in kept.rows if row["answered"]]):
        facts |= {"score_if_answered": sum(told) / len(told), "score_if_answered_stderr": standard_error("mean", told)}
    if kept.rows and {"acc_sum", "score"} <= kept.rows[0].keys():
        rows = [row for row in kept.rows if row["filter"] == kept.rows[0]["filter"]]
        gold, items = [row["gold"] for row in rows], [row["score"] for row in rows]
        facts["floor"] = floor(kept.header["aggregation"], gold, items)
    elif (known := facts_of(key(kept.header["task"], kept.header["headline"])).floor) is not None:
        facts["floor"] = known
    return facts


def _with_errors(values: dict[str, Any], kept: Kept) -> dict[str, float]:
    """lm-eval's values as `metric`, or `metric:filter`, and our own standard errors."""
    out = {}
    for name, value in values.items():
        metric, _, chosen = name.partition(",")
        rows = [row for row in kept.rows if row["filter"] == (chosen or "none")]
        if not isinstance(value, (int, float)) or not rows or metric not in rows[0]:
            continue
        named = metric if chosen == "none" else f"{metric}:{chosen}"
        aggregation = kept.header["aggregation"] if metric == "score" else "mean"
        clusters = [row["cluster"] for row in rows]
        clustered = None if clusters[0] is None else clusters
        out[named] = float(value)
        out[f"{named}_stderr"] = standard_error(aggregation, [row[metric] for row in rows], clustered)
    return out
