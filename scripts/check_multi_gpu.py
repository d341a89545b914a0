"""Restarts, resume and loss on several ranks against one, as a table: what tests show on CPU ranks, on real GPUs.

python scripts/check_multi_gpu.py                          # two GPUs, SmolLM2, bf16: minutes
python scripts/check_multi_gpu.py --ranks 1                # the same on one GPU
python scripts/check_multi_gpu.py --device cpu             # two CPU ranks, the tiny model, fp32
python scripts/check_multi_gpu.py --only remora:zero2      # one row

Each row is a run of UUID pairs with two restarts where the method has them, compared step by step with the same run in one
process. The restart itself checks that every rank holds the same weights, that the adapter's moments are zero and nobody
else's changed, and that the output is the same before and after; a run whose check fails ends there. Then the row's run is
killed after a checkpoint, started again, and compared with the uninterrupted one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mora.config import RunConfig, compose
from mora.config.source import ROOT
from mora.suite.launch import launch, result_of, run_folder
from mora.train import log

METHODS = {"lora": 8, "mora": 8, "relora": 8, "remora": 8, "fft": None}
PARALLEL = ("ddp", "zero1", "zero2", "zero3")
STEPS, EVERY, KILLED_AT = 30, 10, 25
TOLERANCE = {"cpu": 1e-4, "cuda": 0.02}  # nats: fp32, and bf16 whose sums come in another order


class Row(NamedTuple):
    method: str
    parallel: str
    status: str
    restarts: int = 0
    kept: float = float("nan")
    from_one: float = float("nan")
    resumed: float = float("nan")
    step_s: float = float("nan")

    def text(self) -> str:
        numbers = f"{self.restarts:8d} {self.kept:8.4f} {self.from_one:12.2e} {self.resumed:12.2e} {self.step_s:9.4f}"
        return f"{self.method:8} {self.parallel:6} {self.status:8} {numbers}"


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MORA_OUTPUT_DIR"] = folder
        os.environ.setdefault("OMP_NUM_THREADS", "1" if options.device == "cpu" else "4")
        print(f"{'method':8} {'':6} {'status':8} restarts     kept  loss from 1  resumed from    s/step", flush=True)
        rows = []
        for method, r in METHODS.items():
            chosen = [p for p in PARALLEL if options.only in (None, f"{method}:{p}")]
            if not chosen:
                continue
            alone = _run(_config(options, method, r, "none", Path(folder) / "alone"))
            for parallel in chosen:
                rows.append(_row(options, method, r, parallel, alone, Path(folder)))
                print(rows[-1].text(), flush=True)
    return 0 if rows and all(row.status == "ok" for row in rows) else 1


def _row(options: argparse.Namespace, method: str, r: int | None, parallel: str, alone: list[float], out: Path) -> Row:
    config = _config(options, method, r, parallel, out / parallel)
    losses = _run(config)
    result = result_of(config)
    if len(losses) != STEPS or result is None:
        return Row(method, parallel, "failed")
    rows = [row for row in log.read(run_folder(config) / "log.jsonl") if "restart" in row]
    again = _config(options, method, r, parallel, out / f"{parallel}-killed")
    subprocess.run(["rm", "-rf", str(run_folder(config))], check=True)
    _run(again, kill_at=f"after_step:{KILLED_AT}")
    resumed = _difference(_run(again), losses)
    from_one = _difference(losses, alone)
    good = max(from_one, resumed) <= TOLERANCE[options.device] and len(rows) == (2 if "re" in method else 0)
    kept = rows[-1]["restart_kept"] if rows else float("nan")
    return Row(
        method, parallel, "ok" if good else "differs", len(rows), kept, from_one, resumed, result["speed"]["step_s"]
    )


def _config(options: argparse.Namespace, method: str, r: int | None, parallel: str, results: Path) -> RunConfig:
    ranks = 1 if parallel == "none" else options.ranks
    overrides = [
        "task=uuid",
        f"scale={'smoke' if options.device == 'cpu' else 'lite'}",
        f"method={method}",
        f"hardware={'cpu' if options.device == 'cpu' else 'gpu1'}",
        f"hardware.processes={ranks}",
        f"hardware.parallel={parallel}",
        "hardware.cuda_graphs=false",
        f"scale.results_dir={results}",
        f"task.train.stop_step={STEPS}",
        "task.train.warmup_steps=5",
        "task.train.adam_eps=1e-6",  # else an update of a gradient near zero is one of rounding
        "lr=1e-3",
        f"task.train.checkpoint_every_steps={EVERY}",
        "task.evaluation.tasks=[]",
        "task.evaluation.at_steps=[]",
        f"task.evaluation.loss_every_steps={STEPS}",
    ]
    if r is not None:
        overrides += [f"r={r}", "method.adapter.dropout=0"]  # each rank draws masks of its own
    if method in ("relora", "remora"):
        overrides += [f"method.restart.every_steps={EVERY}", "method.restart.warmup_steps=2"]
    return compose(overrides)


def _run(config: RunConfig, kill_at: str | None = None) -> list[float]:
    """The losses of every step that is in the log afterwards."""
    env = {"NCCL_NVLS_ENABLE": "0", "PYTHONWARNINGS": "ignore"}  # no NVLink multicast
    if kill_at:
        env["MORA_KILL_AT"] = kill_at
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with open(folder / "output.txt", "a") as output:
        code = launch(config, output, env)
    if code and not kill_at:
        tail = (folder / "output.txt").read_text()[-1500:]
        print(f"exit code {code} after {time.time() - started:.0f} s:\n{tail}", file=sys.stderr)
    return [row["loss"] for row in log.read(folder / "log.jsonl") if "loss" in row]


def _difference(losses: list[float], expected: list[float]) -> float:
    if len(losses) != len(expected):
        return float("inf")
    return max(abs(a - b) for a, b in zip(losses, expected, strict=True))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=sorted(TOLERANCE), default="cuda")
    rows = [f"{method}:{parallel}" for method in METHODS for parallel in PARALLEL]
    parser.add_argument("--only", choices=rows, metavar="METHOD:PARALLEL", help=f"one row, of {', '.join(rows)}")
    return parser.parse_args()


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
