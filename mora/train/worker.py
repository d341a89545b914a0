"""One run, in a single process or as one of several ranks: model + method + data -> fit -> evaluate -> result JSON."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mora import results
from mora.config import provenance, source
from mora.config.load import load_run
from mora.config.run_id import documents_path, log_path, result_path
from mora.config.schema import RunConfig
from mora.data import load as load_data
from mora.data.batches import Batches
from mora.data.samples import Sample
from mora.errors import ConfigError, MoraError, NonFiniteError
from mora.evaluate import documents, samples
from mora.evaluate.harness import check_names
from mora.evaluate.window import positions
from mora.io import IN_USE, holder, locked, replace_file
from mora.methods import parameter_lines, parameter_table, prepare
from mora.models.fused import use_fused_layers
from mora.models.load import load_model
from mora.models.structure import fast_paths, trains_without_padding
from mora.models.tokenizers import pad_id

from . import input_digests, log, run_messages, watchdog
from .distributed import all_gather_value, device_of_rank, process_group, rank, world_size
from .engines import captures_graphs, make_engine
from .interface import Engine
from .loop import Diverged, Evaluate, fit
from .memory import Peaks
from .run_environment import hardware_facts, others_hold_memory, versions
from .save_model import save_model
from .scoring import Scoring


def run(folder: Path) -> Path:
    """Run `folder/config.yaml` to its end, from its last checkpoint if there is one; a finished run is not repeated.

    Returns:
        The path of the result.

    Raises:
        ConfigError: The run cannot be done.
        MoraError: As `fit`. Diverged and NonFiniteError are not raised: the result then has the status `diverged`.
    """
    source.of_this_process()
    config = load_run(folder)
    device = device_of_rank(_device(config.hardware.device))
    with _hold(folder):
        if (done := result_path(config)).is_file():
            return done
        with process_group(config.hardware.world_size, device):
            return _run(config, folder, device)


def _run(config: RunConfig, folder: Path, device: torch.device) -> Path:
    started = time.monotonic()
    check_same_code()
    if config.task.evaluation.tasks:
        check_names(config.task.evaluation.tasks)
    model, tokenizer = load_model(config.model, config.scale.precision, device)
    data = load_data(config, tokenizer)
    _print_once(data.report.text(config.task.name))
    if config.method.trains:
        config = with_samples(config, len(data.samples))
    check_positions(model, data.samples)
    inputs = {
        "model": {"path": config.model.path, "sha256": input_digests.digest(config.model)},
        "data": data.fingerprints,
    }
    if rank() == 0:
        input_digests.same_as_before(folder, inputs)
    pad = pad_id(tokenizer)
    scoring = Scoring(config, data, tokenizer, pad, folder)
    scoring.check()
    fused = device.type == "cuda" and use_fused_layers(model)
    model = prepare(model, config).to(device)
    batches = make_batches(config, model, data.samples, pad)
    parameters = parameter_table(model)
    paths = fast_paths(model, batches.padding_free, fused, device.type == "cuda" and captures_graphs(config))
    _print_once("\n".join(parameter_lines(model, config.rank_text)))
    _print_once(run_messages.fast_paths_line(paths))
    _print_once(run_messages.beginning(config, device, model, folder))
    watchdog.start(folder, rank(), world_size())
    engine = make_engine(model, config)
    peaks = Peaks(device)
    shared = others_hold_memory(device)
    outcome = _train_or_score(engine, batches, config, folder, partial(scoring, engine, peaks))
    shared = others_hold_memory(device) or shared  # also as seen at the start: parallel runs may have ended
    if config.method.trains and config.hardware.save_model and outcome["status"] == "done":
        with engine.materialized():
            save_model(model, tokenizer, config, folder)
    watchdog.stop()
    # A run that diverged trained until now. Any other has by now scored its last step.
    peaks.end_stretch(training=outcome["status"] == "diverged")
    facts = {
        "data": {"fingerprints": data.fingerprints, "report": data.report.as_dict(), "model": inputs["model"]},
        "total_steps": config.total_steps if config.method.trains else 0,
        "last_step": config.final_step,
        "parameters": {"trainable": sum(parameters.values()), "by_module": parameters},
        "hardware": hardware_facts(config, device, shared)
        | peaks.facts()
        | {"fused_layers": fused, "fast_paths": paths},
        "wall_s": round(time.monotonic() - started, 1),
        "scoring_s": round(scoring.seconds, 1),
    }
    if rank() > 0:
        return folder
    path = write_result(config, folder, outcome | facts)
    print(run_messages.ending(config, folder, time.monotonic() - started), flush=True)
    return path


def _train_or_score(
    engine: Engine, batches: Batches, config: RunConfig, folder: Path, evaluate: Evaluate
) -> dict[str, Any]:
    """Train, or only score if nothing trains; return `status`, `speed` and, if the run diverged, the `reason`."""
    if not config.method.trains:
        rows = log.RunLog(folder / "log.jsonl", write=rank() == 0)
        rows.add(step=0, **evaluate(0, False))
        rows.flush()
        return {"status": "done", "speed": None}
    try:
        return {"status": "done", "speed": fit(engine, batches, config, folder, evaluate)}
    except (Diverged, NonFiniteError) as error:  # NonFiniteError: the last update ruined the weights
        if rank() == 0:
            print(f"diverged: {error}; only the log is saved: lower lr", file=sys.stderr, flush=True)
        return {"status": "diverged", "reason": str(error), "speed": None}


def write_result(config: RunConfig, folder: Path, facts: dict[str, Any]) -> Path:
    """Write `<results_dir>/<run_id>.json` and, beside it, its raw log and, except at scale smoke, its documents' scores.

    Then remove the checkpoints. Return the path of the JSON.
    """
    path = result_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, text = log.read(folder / "log.jsonl"), (folder / "log.jsonl").read_text()
    result = results.of_facts(
        facts
        | {
            "run_id": path.stem,
            "config": config.model_dump(mode="json"),
            "provenance": provenance.of_run(config),
            "source": source.of_this_process(),
            "packages": versions(),
            "metrics": results.of_log(rows),
            "log_sha256": results.log_digest(text),
            "final_train_loss": next((row["loss"] for row in reversed(rows) if "loss" in row), None),
        }
    )
    replace_file(log_path(config), text)
    if config.scale.name != "smoke" and (folder / "samples").is_dir():
        documents.write(documents_path(config), samples.read(folder))
    replace_file(path, result.text())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return path


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Context manager: keep other processes out of the run's folder. Raises MoraError if one is already there."""
    if int(os.environ.get("RANK", 0)) > 0:  # rank 0 holds the lock for all
        yield
        return
    with locked(folder, wait=False) as ours:
        if not ours:
            who = holder(folder)
            raise MoraError(f"{folder} {IN_USE} ({who}): wait for it or stop it")
        yield


def with_samples(config: RunConfig, n: int) -> RunConfig:
    """Return the run with its number of samples.

    Raises ConfigError if the schedule does not fit into the steps that they make.
    """
    try:
        return config.with_samples(n)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_batches(config: RunConfig, model: torch.nn.Module, samples: Sequence[Sample], pad: int) -> Batches:
    """Return the run's micro batches, without padding if the hardware says so and the model allows it."""
    hardware = config.hardware
    padding_free = hardware.padding_free and trains_without_padding(model)
    return Batches(
        samples, pad, config.task.train.global_batch_size, config.micro_batch_size, config.seed,
        hardware.micro_batch_tokens, hardware.world_size, padding_free,
    )  # fmt: skip


def check_same_code() -> None:
    """Raise ConfigError if the ranks, on several machines, run different code. All ranks must call."""
    codes = all_gather_value(f"fingerprint {source.of_this_process()['fingerprint']}, torch {torch.__version__}")
    if len(set(codes)) > 1:
        by_rank = "; ".join(f"rank {number}: {code}" for number, code in enumerate(codes))
        raise ConfigError(
            f"the ranks run different code ({by_rank}): bring every machine to the same commit and packages"
        )


def check_positions(model: torch.nn.Module, samples: Sequence[Sample]) -> None:
    """Raise ConfigError, before anything is trained, if a sequence is longer than the model's positions."""
    there = positions(model)
    if there is None:
        return
    longest = getattr(samples, "longest", None) or max((len(sample.input_ids) for sample in samples), default=0)
    if longest > there:
        raise ConfigError(
            f"the model has {there} positions, the longest sequence {longest} tokens: lower task.data.max_length to {there}"
        )


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("hardware.device='cuda': torch sees no GPU here; use hardware=cpu or hardware=auto")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def _print_once(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)
