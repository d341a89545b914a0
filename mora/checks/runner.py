"""Trials: short runs under a deadline, each in its own folder, that prove the path on the hardware at hand. No torch."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mora.config import RunConfig
from mora.config.arguments import amount, output_folder, positive_int
from mora.errors import ConfigError
from mora.io import replace_file
from mora.planner.gpus import GIB
from mora.results import RunResult
from mora.suite.gpus import GpuSlots, visible
from mora.suite.launch import launch
from mora.suite.usable import result_of
from mora.train import log

ROOM = 80 * GIB  # of memory that files may take: a 7B checkpoint with its fp32 shadow, and the merged model
WORDS = 1500  # characters of a failed run's output
QUIET = {
    "NCCL_NVLS_ENABLE": "0",  # no NVLink multicast
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "PYTHONDONTWRITEBYTECODE": "",  # images of containers set it; without bytecode, imports take most of a short run
}


@dataclass(frozen=True)
class Outcome:
    """code: None where no time was left to start. rows: of the log, whole or not. words: the last that was printed."""

    code: int | None
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    result: RunResult | None = None
    words: str = ""

    @property
    def status(self) -> str:
        if self.code is None:
            return "not run"
        return self.result.status if self.code == 0 and self.result else "failed"

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows if "loss" in row]

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """Rows of steps with a restart. One is written only after everything that the restart promises was checked."""
        return [row for row in self.rows if "restart" in row]

    def measured(self) -> dict[str, Any]:
        """Return the run's speed, peak_gib, wall_s and launch_s, as far as it came.

        launch_s is the time before and after the worker's own: Python's imports, torchrun, the ranks joining.
        """
        if self.result is None:
            return {"peak_gib": None, "wall_s": self.seconds}
        peak, wall_s = self.result.peak_memory_bytes, self.result.wall_s
        launch = {} if wall_s is None else {"launch_s": self.seconds - wall_s}
        return {**(self.result.speed or {}), "peak_gib": peak and peak / GIB, "wall_s": self.seconds, **launch}


class CheckRunner:
    """Runs in `folder` until `limit_s` from now, `jobs` side by side; those in one process are spread over `gpus`.

    Each of them runs for `run_limit_s` at most, then it is killed with its ranks. Where the time of all is over, or `stop`
    was called, what runs is killed and nothing is started: every `run` still returns what is known.
    """

    def __init__(self, folder: Path, jobs: int, ranks: int, gpus: list[str], limit_s: float, run_limit_s: float):
        self.folder, self.run_limit_s, self.gpus = folder, run_limit_s, gpus
        self.deadline = time.monotonic() + limit_s
        self.pool, self.slots = ThreadPoolExecutor(jobs), GpuSlots(jobs, gpus)
        threads = max(1, (os.cpu_count() or 1) // (jobs * ranks))
        self.env = QUIET | {"MORA_SIDE_BY_SIDE": str(jobs), "OMP_NUM_THREADS": str(threads)}

    def on(self, i: int) -> dict[str, str]:
        """Return the environment of a run that sees only the i-th GPU, counted round."""
        return {"CUDA_VISIBLE_DEVICES": self.gpus[i % len(self.gpus)]} if self.gpus else {}

    def run(
        self, name: str, config: RunConfig, gpu_env: dict[str, str] | None = None, kill_at: str | None = None
    ) -> Outcome:
        """Run or resume the worker of `config` in the folder `name`. `gpu_env`: from `on` or `slots.take`."""
        started, folder = time.monotonic(), self.folder / name

        def left_s() -> float:
            return min(started + self.run_limit_s, self.deadline) - time.monotonic()

        if left_s() <= 0:
            return Outcome(None)
        folder.mkdir(parents=True, exist_ok=True)
        scale = config.scale.model_copy(update={"results_dir": str(folder / "results")})
        config = config.model_copy(update={"scale": scale})
        env = self.env | (gpu_env or {})
        if kill_at:
            env["MORA_KILL_AT"] = kill_at
        with open(folder / "output.txt", "a") as output:
            code = launch(config, output, env, folder, left_s)
        seconds = time.monotonic() - started
        words = last_words((folder / "output.txt").read_text(errors="replace"))
        if code != 0 and left_s() <= 0:
            words += f"\nkilled after {seconds:.0f} s"
        return Outcome(code, seconds, log.read(folder / "log.jsonl"), result_of(config), words)

    def stop(self) -> None:
        """Kill running trials and start no more."""
        self.deadline = 0.0

    def close(self) -> None:
        """End everything that was started."""
        self.stop()
        self.pool.shutdown(cancel_futures=True)

    def latest_step(self, name: str) -> int:
        """Return the step of the newest checkpoint; 0 if there is none."""
        steps = sorted((self.folder / name / "checkpoints").glob("step_*"))
        return int(steps[-1].name.removeprefix("step_")) if steps else 0

    def remove(self, name: str) -> None:
        """Remove the run's files."""
        shutil.rmtree(self.folder / name, ignore_errors=True)


def last_words(output: str) -> str:
    """Return the end of a run's output, before torchrun's own account of a rank that died."""
    lines = output.split("\n")
    died = next((i for i, line in enumerate(lines) if "failed (exitcode" in line), len(lines))
    lines = [line.rstrip().split("\r")[-1] for line in lines[:died]]
    return "\n".join(line for line in lines if line)[-WORDS:]


class Table:
    """Rows of named values: printed as they come, and written whole each time to `<out>/<name>.json` and `.md`.

    columns: format of each value, by its name; a value that is missing is a dash.
    """

    def __init__(self, name: str, columns: dict[str, str], out: Path | None, facts: dict[str, Any]):
        self.name, self.columns, self.out, self.facts = name, columns, out, facts
        self.rows: list[dict[str, Any]] = []
        print(f"{name}: {json.dumps(facts)}\n{self._line({key: key for key in columns})}", flush=True)

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        print(self._line(row), flush=True)
        if row.get("last_words"):
            print("    " + row["last_words"].replace("\n", "\n    "), flush=True)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            contents = {"name": self.name, **self.facts, "rows": self.rows}
            replace_file(self.out / f"{self.name}.json", json.dumps(contents, indent=1) + "\n")
            replace_file(self.out / f"{self.name}.md", self._markdown())

    def _line(self, row: dict[str, Any]) -> str:
        widths = {key: max(len(key), 10) for key in self.columns}
        return " ".join(f"{self._text(row, key):>{width}}" for key, width in widths.items())

    def _text(self, row: dict[str, Any], key: str) -> str:
        value = row.get(key)
        if value is None:
            return "-"
        return value if isinstance(value, str) else format(value, self.columns[key])

    def _markdown(self) -> str:
        lines = [list(self.columns), ["---"] * len(self.columns)]
        lines += [[self._text(row, key) for key in self.columns] for row in self.rows]
        facts = "".join(f"- {key}: {value}\n" for key, value in self.facts.items())
        return f"{facts}\n" * bool(facts) + "".join(f"| {' | '.join(line)} |\n" for line in lines)


@contextmanager
def started_checks(options: argparse.Namespace) -> Iterator[CheckRunner]:
    """Context manager: a runner for the options of `add_options`, in a folder that is removed afterwards.

    The folder is in memory if there is room. SIGTERM and Ctrl-C end the trials' time, so that the table is completed
    with what was not run.
    """
    chosen, shared = options.scratch, Path("/dev/shm")
    if chosen is None and shared.is_dir() and shutil.disk_usage(shared).free >= ROOM:
        chosen = shared
    with TemporaryDirectory(dir=chosen, prefix="mora-check-", ignore_cleanup_errors=True) as folder:
        free = [f"{path} {shutil.disk_usage(path).free / GIB:.1f} GiB free" for path in (folder, shared)]
        python = f"Python {sys.version.split()[0]}{', told to write no bytecode' if sys.dont_write_bytecode else ''}"
        print(f"{', '.join(free)}; {os.cpu_count()} cores; {python}", flush=True)
        gpus = visible()[: options.ranks] if options.device == "cuda" else []
        checks = CheckRunner(Path(folder), options.jobs, options.ranks, gpus, options.limit_s, options.run_limit_s)
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(name) != signal.SIG_IGN:  # nohup
                signal.signal(name, lambda *_: checks.stop())
        try:
            yield checks
        finally:
            checks.close()


def add_options(parser: argparse.ArgumentParser, jobs: int, limit_s: float, run_limit_s: float) -> None:
    """Add the options that every check has, with their defaults."""
    parser.add_argument("--ranks", type=positive_int, default=2, help="GPUs, or ranks on the CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--jobs", type=positive_int, default=jobs, help="runs side by side")
    parser.add_argument(
        "--limit-s", type=amount, default=limit_s, help="of the whole: what has not run by then is not run"
    )
    parser.add_argument("--run-limit-s", type=amount, default=run_limit_s, help="of a run: a hang ends as a failed row")
    parser.add_argument(
        "--out", type=output_folder, help="a folder for the tables, as JSON and Markdown, written after every row"
    )
    parser.add_argument("--scratch", type=Path, help="where runs write; else /dev/shm if it is large, or TMPDIR")


def gpus(wanted: int, config: RunConfig) -> dict[str, Any]:
    """Return the GPUs. Makes the checkpoint of a packaged model once, before all runs need it.

    Raises:
        ConfigError: There are fewer GPUs than `wanted`, or the package is missing.
    """
    import torch

    from mora.models.tokenizers import load_tokenizer

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if len(devices) < wanted:
        raise ConfigError(f"--ranks {wanted}: torch sees {len(devices)} GPUs; take fewer, or --device cpu")
    load_tokenizer(config.model)
    return {"gpus": devices, "torch": torch.__version__}
