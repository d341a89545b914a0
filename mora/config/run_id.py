"""The name of a run: readable, and a hash over everything that can change its result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from . import source
from .model_schema import EARLIER_TEXT_ENDS, Model
from .schema import RunConfig

LAYOUT_VERSION = 1  # the version of what is hashed


def run_id(config: RunConfig) -> str:
    """Return the name of a run, such as `uuid-mora-r8-lr3e-4-s0-0123456789`. Runs whose results must be equal share it.

    The hash leaves out the hardware, the tracker, where weights and results are, and how often a run logs or saves.
    """
    values = config.model_dump(
        mode="json", exclude={"hardware": True, "tracker": True, "scale": {"results_dir"}, "model": True}
    )
    values["model"] = _identity(config.model)
    values["task"].pop("lr_grid")
    values["method"].pop("lr_grid")
    values["method"].pop("config")  # the adapter has its content
    values["task"]["data"].pop("kind")  # the task's name says it
    values["task"].pop("restart_every_steps")  # the method's restart has this and the next
    values["task"].pop("restart_warmup_steps")
    if config.task.train.shorten_by == 1:  # as for all runs before the field existed
        values["task"]["train"].pop("shorten_by")
    evaluation = config.task.evaluation
    if evaluation.merge or not evaluation.tasks or config.method.adapter is None:  # the same, or nothing is merged
        values["task"]["evaluation"].pop("merge")
    for part in values["task"]["data"].values():  # the same
        if isinstance(part, dict) and part.get("validation") == []:
            part.pop("validation")
    values["task"].pop("overflow")  # the adapter has it
    for quiet in ("log_every_steps", "checkpoint_every_steps"):
        values["task"]["train"].pop(quiet)
    digest = hashlib.sha256(json.dumps([LAYOUT_VERSION, values], sort_keys=True).encode()).hexdigest()[:10]
    parts: list[str] = [config.task.name, config.method.label]
    if config.r is not None:
        parts.append(f"r{config.r}")
    if config.lr is not None:
        parts.append(f"lr{format_lr(config.lr)}")
    return "-".join([*parts, f"s{config.seed}", digest])


def _identity(model: Model) -> dict[str, Any]:
    """Return the parts of a model that can change a result, in the form of layout 1.

    In it the model's source has its first name, and there is one factor for all ranks.
    """
    fields = {"name", "source", "revision", "sha256", "init_seed", "architecture", "tokenizer"}
    values = model.model_dump(mode="json", include=fields)
    if model.source == "gguf":
        values["source"] = "gguf_package"
    factors = {divmod(paper, ours) for ours, paper in model.ranks.items()} or {(1, 0)}
    whole = len(factors) == 1 and min(factors)[1] == 0
    values["rank_scale"] = min(factors)[0] if whole else {str(ours): paper for ours, paper in model.ranks.items()}
    ends = model.model_dump(mode="json", include={"text_ends"})
    if ends["text_ends"] != EARLIER_TEXT_ENDS.get(model.name):
        values |= ends
    later = model.model_dump(mode="json", include={"dtype", "tie_head", "rank_caps", "target_modules"})
    return values | {key: value for key, value in later.items() if value not in (None, {})}


def result_path(config: RunConfig) -> Path:
    """Return the path at which the run's result is written and looked for."""
    return source.ROOT / config.scale.results_dir / f"{run_id(config)}.json"


def log_path(config: RunConfig) -> Path:
    """Return the path of the raw log, which is beside the result."""
    return result_path(config).with_suffix(".log.jsonl")


def spectrum_path(config: RunConfig) -> Path:
    """Return the path at which the spectrum of the run's ΔW is written and looked for."""
    path = result_path(config)
    return path.parent.parent / "spectra" / path.name


def documents_path(config: RunConfig) -> Path:
    """Return the path at which the scores of all documents of the run's evaluation are written and looked for."""
    path = result_path(config)
    return path.parent.parent / "documents" / f"{path.stem}.jsonl.zst"


def format_lr(lr: float) -> str:
    """Return the shortest scientific form of a learning rate: 3e-4, 2.5e-4."""
    mantissa, exponent = f"{lr:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
