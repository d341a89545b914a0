"""A run's folder, and the worker process in it. No torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from mora.config import RunConfig, run_id
from mora.config.source import ROOT


def run_folder(config: RunConfig) -> Path:
    """Where the run works: outputs/<run_id>, or MORA_OUTPUT_DIR/<run_id> for a larger disk."""
    return Path(os.environ.get("MORA_OUTPUT_DIR", ROOT / "outputs")) / run_id(config)


def result_path(config: RunConfig) -> Path:
    return ROOT / config.scale.results_dir / f"{run_id(config)}.json"


def result_of(config: RunConfig) -> dict[str, Any] | None:
    """The result of this very run, if it was made."""
    path = result_path(config)
    return json.loads(path.read_text()) if path.is_file() else None


_workers: set[subprocess.Popen[bytes]] = set()


def interrupt_on_sigterm() -> None:
    """From now on SIGTERM is Ctrl-C: what is running is stopped gently, not abandoned."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def stop_workers() -> None:
    """Asks every worker that is running to save a checkpoint and end."""
    for worker in list(_workers):
        worker.send_signal(signal.SIGTERM)


def _starter(config: RunConfig) -> list[str]:
    """Python, or torchrun for several ranks: it ends them all when one dies."""
    hardware = config.hardware
    if hardware.world_size == 1:
        return [sys.executable]
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={hardware.processes}"]
    if hardware.nodes == 1:
        return [*torchrun, "--standalone"]
    where = f"--rdzv-endpoint={hardware.rendezvous}"
    return [*torchrun, f"--nnodes={hardware.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={run_id(config)}", where]


def launch(config: RunConfig, output: Any = None, env: dict[str, str] | None = None) -> int:
    """Runs the worker to its end and returns its exit code; a run whose result exists is not repeated.

    `output`: a file for what it prints, else this terminal.
    """
    if result_of(config) is not None:
        print(f"already done: {result_path(config)}", file=output or sys.stdout)
        return 0
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    written = folder / "config.yaml"
    if not written.is_file() or written.read_text() != text:
        written.write_text(text)
    lr = "" if config.lr is None else f" lr={config.lr:g}"
    steps = f"{config.last_step} steps" if config.knows_steps else f"{config.task.train.epochs} epochs"
    print(f"{run_id(config)}: {steps},{lr} folder {folder}", file=output or sys.stdout, flush=True)
    worker = subprocess.Popen(
        [*_starter(config), "-m", "mora.train", str(folder)],
        stdout=output,
        stderr=output and subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    _workers.add(worker)
    try:
        return worker.wait()
    except KeyboardInterrupt:
        stop_workers()
        return worker.wait()
    finally:
        _workers.discard(worker)
