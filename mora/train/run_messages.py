"""The messages of a run: what it is, at its beginning, and its outcome, at its end."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from mora.config.run_id import result_path
from mora.config.schema import RunConfig
from mora.evaluate.metrics import STDERR, is_metric

from . import checkpoint, log
from .distributed import world_size


def quiet() -> None:
    """Silence those warnings and messages of libraries that a user cannot act on."""
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.disable_progress_bar()
    for name in ("lm_eval", "lm-eval", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def beginning(config: RunConfig, device: torch.device, model: Any, folder: Path) -> str:
    """Return device, precision, model, rank, batch, learning rate, operator, the step resumed from and the result's path."""
    name, ranks = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", world_size()
    where = f"{name} x {ranks}, {config.parallel}" if ranks > 1 else name
    rank = f", {config.rank_text}" if config.rank_text else ""
    lines = [f"on {where}, {config.scale.precision}: {config.model.name}{rank}"]
    if config.method.trains:
        start = checkpoint.latest_step(folder / "checkpoints")
        begin = f"resumed after step {start}" if start else "from the beginning"
        lines.append(f"{_batch(config)}; lr {config.lr:g}; {config.last_step} steps, {begin}")
    adapters = getattr(model, "peft_config", {}).values()
    if operators := {operator for c in adapters if (operator := getattr(c, "operator", None))}:
        lines.append(f"operator: {', '.join(sorted(operators))}")
    return "\n".join([*lines, f"the result will be in {result_path(config)}"])


def fast_paths_line(paths: dict[str, bool]) -> str:
    """Return which shortcuts the run takes, and which it does not."""
    used = ", ".join(name for name, there in paths.items() if there) or "none"
    absent = ", ".join(name for name, there in paths.items() if not there)
    return f"fast paths: {used}" + (f"; not used here: {absent}" if absent else "")


def _batch(config: RunConfig) -> str:
    size, tokens = config.task.train.global_batch_size, config.hardware.micro_batch_tokens
    if tokens is not None:
        return f"{size} sequences per step, at most {tokens} tokens per pass"
    micro, ranks = config.micro_batch_size, world_size()
    return f"{size} sequences per step: {micro} per pass, {size // (micro * ranks)} passes, {ranks} ranks"


def ending(config: RunConfig, folder: Path, seconds: float) -> str:
    """Return scores with their errors, the time, what was saved and where, and what can be done next."""
    rows = [row for row in log.read(folder / "log.jsonl") if "loss" not in row]
    scores = [_score(key, rows[-1]) for key in rows[-1] if key != "step" and is_metric(key)] if rows else []
    lines = [f"{', '.join(scores) or 'no scores'}; {seconds:.0f} s"]
    saved = [folder / part for part in ("adapter", "model") if (folder / part).is_dir()]
    lines += [f"saved: {path}" for path in saved]
    if path := next(filter(_has_base, saved), None):
        lines.append(f"next: mora generate {path} PROMPT, or mora evaluate {path} --task TASK")
    return "\n".join(lines)


def _has_base(saved: Path) -> bool:
    """Return whether a saved model is whole, or is an adapter that names its base; one of drawn weights may have no name."""
    config = saved / "adapter_config.json"
    return not config.is_file() or bool(json.loads(config.read_text())["base_model_name_or_path"])


def _score(key: str, row: dict[str, Any]) -> str:
    value, error = row[key], row.get(f"{key}{STDERR}")
    if not isinstance(value, float):
        return f"{key} {value}"
    return f"{key} {value:.4f}" + (f" +- {error:.4f}" if isinstance(error, float) else "")
