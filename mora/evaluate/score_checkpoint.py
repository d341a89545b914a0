"""Scores of a checkpoint or adapter outside a run: `python -m mora.evaluate`."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mora.config import source
from mora.config.seal import sealed
from mora.io import output_dir, replace_file
from mora.models.load import load_any

from . import samples, score_file
from .harness import Settings, TaskScores, check_names, evaluate_model
from .metrics import STDERR

PACKAGES = ("torch", "transformers", "peft", "lm_eval", "datasets")


def run(options: argparse.Namespace) -> Path:
    """Evaluate, write `result.json` and `samples/` into the output folder, and return the path of the JSON.

    That folder is `options.output`; by default it is in `evaluation/` of the folder where runs work, under the model's name
    (and `-unmerged`). If it already has scores of the same weights and settings, the tasks are added to them.

    Raises:
        ConfigError: The model or a task cannot be evaluated, or the folder holds a result of other weights or settings.
        OSError: The output cannot be written.
    """
    started, code = time.monotonic(), source.of_this_process()
    where = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = torch.device(where).type == "cuda"
    check_names(options.task)
    precision = options.precision or ("bf16" if on_gpu else "fp32")
    model, tokenizer = load_any(options.model, precision, merge=not options.unmerged)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    model = model.to(where)
    name = _short(Path(options.model)) + ("-unmerged" if options.unmerged else "")
    folder = Path(options.output or output_dir() / "evaluation" / name)
    identity = fingerprint(model)
    settings = Settings(
        batch_size=options.batch_size,
        max_length=options.max_length or Settings.max_length,
        length_limit=options.max_length,
        limit=options.limit,
        data_dir=options.data_dir,
        response_cache=folder / "journal.jsonl",
        identity=f"{identity}|{precision}|{code['fingerprint']}",  # other code may give other answers
    )
    new: dict[str, Any] = {
        "model": {"name": options.model, "fingerprint": identity, "precision": precision}
        | ({"unmerged": True} if options.unmerged else {}),
        "settings": {k: getattr(settings, k) for k in ("batch_size", "max_length", "limit")},
    }
    score_file.known(folder, new)  # raises, if at all, before anything is scored
    metrics, logged = evaluate_model(model, tokenizer, options.task, settings)
    facts = {
        "source": code,
        "packages": {package: version(package) for package in PACKAGES},
        "hardware": torch.cuda.get_device_name(where) if on_gpu else "cpu",
        "wall_s": round(time.monotonic() - started, 1),
    }
    new["metrics"] = {
        name: {k: None if math.isnan(v) else v for k, v in values.items()} for name, values in metrics.items()
    }
    new["tasks"] = {name: k.header | facts for name, k in logged.items()}
    joined = score_file.joined(folder, new)
    samples.write(folder, logged)
    replace_file(folder / "result.json", json.dumps(sealed(joined), indent=1, sort_keys=True) + "\n")
    (folder / "journal.jsonl").unlink(missing_ok=True)
    _print_scores(metrics)
    return folder / "result.json"


def _print_scores(metrics: TaskScores) -> None:
    for name, values in metrics.items():
        shown = "  ".join(f"{k} {v:.4f}" for k, v in values.items() if not k.endswith(STDERR))
        error = values.get(f"score{STDERR}", math.nan)
        print(f"{name}: {shown}" + ("" if math.isnan(error) else f"  (+- {error:.4f})"))


def _short(model: Path) -> str:
    """Return the name of the model in its scores. For adapter/ or model/ in a run's folder it is the run's name."""
    return model.resolve().parent.name if model.name in ("adapter", "model") else model.name


def fingerprint(model: torch.nn.Module) -> str:
    """Return 16 hex digits over every weight's name and bytes."""
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
