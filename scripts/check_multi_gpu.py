"""Restarts, resume and loss on several ranks against one, as a table: what tests show on CPU ranks, on real GPUs.

python scripts/check_multi_gpu.py --out results/checks     # two GPUs, SmolLM2, bf16: minutes
python scripts/check_multi_gpu.py --ranks 1                # the same on one GPU
python scripts/check_multi_gpu.py --device cpu             # two CPU ranks, the tiny model, fp32
python scripts/check_multi_gpu.py --only remora:zero2 fft  # some rows: METHOD:PARALLEL, or all of a METHOD or PARALLEL

Each row is a run of UUID pairs with two restarts where the method has them. `checked` counts restarts: each has checked that
every rank holds the same weights, that the adapter's moments are zero and nobody else's changed, and that the adapter adds
nothing to the merged base; a run whose check fails ends there. The run is killed in its last step and started again from
its checkpoint of step 16. `resumed` compares the steps that are done twice; `from_one` compares all with the same run in one
process, whose micro batches are a rank's. Differences are the largest of those steps, in nats. Runs share the GPUs (--jobs),
so step_s is theirs together; a run that hangs is killed with its ranks and its row fails. A row that failed shows what was
measured until then.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from mora.config import RunConfig, compose
from mora.config.source import ROOT
from mora.suite.trial import Outcome, Table, Trials, add_options, gpus, start_trials

METHODS = {"remora": 8, "relora": 8, "mora": 8, "lora": 8, "fft": None}
PARALLEL = ("ddp", "zero1", "zero2", "zero3")
STEPS, EVERY = 24, 8
SAVED_AT = 2 * EVERY  # with a restart before it and one in it
BATCH = {"cpu": 16, "cuda": 40}  # small, as many runs share a GPU
TOLERANCE = {
    "cpu": 1e-4,
    "cuda": 0.02,
}  # nats: fp32; bf16, where a weight that is rounded elsewhere moves the next steps
COLUMNS = {
    "method": "", "parallel": "", "status": "", "checked": "d", "kept": ".4f", "rounding": ".1e", "from_one": ".1e",
    "resumed_at": "d", "resumed": ".1e", "first_loss": ".4f", "last_loss": ".4f", "restart_s": ".2f", "step_s": ".3f",
    "peak_gib": ".1f", "launch_s": ".0f", "wall_s": ".0f",
}  # fmt: skip


def main() -> int:
    options = _options()
    chosen = [row for row in _all_rows() if not options.only or {*row, ":".join(row)} & {*options.only}]
    alone = {method: _config(options, method, "none") for method, _ in chosen}
    ranked = {row: _config(options, *row) for row in chosen}
    facts = {"device": options.device, "ranks": options.ranks, "steps": STEPS, "jobs": options.jobs}
    if options.device == "cuda":
        facts |= gpus(options.ranks, ranked[chosen[0]])
    with start_trials(options) as trials:
        table = Table("ranks", COLUMNS, options.out, facts)
        _fill(table, trials, alone, ranked, options)
    return 0 if all(row["status"] == "ok" for row in table.rows) else 1


def _all_rows() -> list[tuple[str, str]]:
    return [(method, parallel) for method in METHODS for parallel in PARALLEL]


def _fill(
    table: Table,
    trials: Trials,
    alone: dict[str, RunConfig],
    ranked: dict[tuple[str, str], RunConfig],
    options: argparse.Namespace,
) -> None:
    """Each row is added when its two parts are done: the run in one process, and on the ranks, killed and resumed."""
    single: dict[str, Future[Outcome]] = {}
    for i, (method, config) in enumerate(alone.items()):
        single[method] = trials.pool.submit(trials.run, f"{method}-alone", config, trials.on(i))
    ranks = {row: trials.pool.submit(_killed_and_resumed, trials, row, config) for row, config in ranked.items()}
    left = list(ranked)
    while left:
        for row in [row for row in left if single[row[0]].done() and ranks[row].done()]:
            table.add(**_row(row, single[row[0]].result(), ranks[row].result(), options.device))
            left.remove(row)
            trials.remove("-".join(row))
        if waiting := [part for row in left for part in (single[row[0]], ranks[row]) if not part.done()]:
            wait(waiting, return_when=FIRST_COMPLETED)


@dataclass(frozen=True)
class _Ranked:
    """saved_at: the step of the checkpoint that the run was resumed from; 0 where it was not killed as it should be."""

    killed: Outcome
    saved_at: int = 0
    resumed: Outcome = field(default_factory=lambda: Outcome(None))


def _killed_and_resumed(trials: Trials, row: tuple[str, str], config: RunConfig) -> _Ranked:
    name = "-".join(row)
    killed = trials.run(name, config, kill_at=f"after_step:{STEPS}")
    saved_at = trials.latest_step(name)
    if killed.status != "failed" or saved_at != SAVED_AT or len(killed.losses) != STEPS - 1:
        return _Ranked(killed)
    return _Ranked(killed, saved_at, trials.run(name, config))


def _row(row: tuple[str, str], alone: Outcome, ranked: _Ranked, device: str) -> dict[str, Any]:
    killed, resumed = ranked.killed, ranked.resumed
    whole = resumed if ranked.saved_at and resumed.losses else killed
    found: dict[str, Any] = {"method": row[0], "parallel": row[1], "resumed_at": ranked.saved_at, **whole.measured()}
    found |= {"wall_s": killed.seconds + resumed.seconds, "all_wall_s": [killed.seconds, resumed.seconds]}
    restarts = whole.restarts
    if restarts:
        found |= {"kept": restarts[-1]["restart_kept"], "rounding": restarts[-1]["restart_rounding"]}
        found |= {"restart_s": max(r["restart_s"] for r in restarts)}
    if whole.losses:
        found |= {"checked": len(restarts), "first_loss": whole.losses[0], "last_loss": whole.losses[-1]}
        found |= {"from_one": _difference(whole.losses, alone.losses)}
        if whole is resumed:
            found |= {"resumed": _difference(resumed.losses[SAVED_AT:], killed.losses[SAVED_AT:])}
    parts = {"in one process": alone, "on the ranks": resumed if ranked.saved_at else killed}
    for part, outcome in parts.items():
        if outcome.status != "done" or len(outcome.losses) != STEPS:
            status = "not run" if outcome.status == "not run" else "failed"
            return found | {"status": status, "last_words": f"{part}, {outcome.status}: {outcome.words}"}
    right = ranked.saved_at == SAVED_AT and len(restarts) == (2 if row[0] in ("relora", "remora") else 0)
    good = right and max(found["from_one"], found["resumed"]) <= TOLERANCE[device]
    return found | {"status": "ok" if good else "differs"}


def _difference(some: list[float], others: list[float]) -> float | None:
    """The largest, over the steps that both have; None where there are none."""
    return max((abs(a - b) for a, b in zip(some, others, strict=False)), default=None)


def _config(options: argparse.Namespace, method: str, parallel: str) -> RunConfig:
    on_cpu, r, batch = options.device == "cpu", METHODS[method], BATCH[options.device]
    overrides = [
        "task=uuid",
        f"scale={'smoke' if on_cpu else 'lite'}",
        f"method={method}",
        f"hardware={'cpu' if on_cpu else 'gpu1'}",
        f"hardware.processes={1 if parallel == 'none' else options.ranks}",
        f"hardware.parallel={parallel}",
        f"hardware.micro_batch_size={batch // options.ranks}",  # the same sums in one process
        f"task.train.global_batch_size={batch}",
        f"task.data.pairs={batch if on_cpu else 200}",
        "hardware.cuda_graphs=false",
        f"task.train.stop_step={STEPS}",
        "task.train.warmup_steps=4",
        "task.train.adam_eps=1e-6",  # else an update of a gradient near zero is one of rounding
        f"lr={'1e-4' if method == 'fft' else '1e-3'}",
        f"task.train.checkpoint_every_steps={SAVED_AT}",
        "task.train.log_every_steps=1",  # so that what was measured until it was killed is known
        "task.evaluation.tasks=[]",
        "task.evaluation.at_steps=[]",
        f"task.evaluation.batch_size={batch}",
        f"task.evaluation.loss_every_steps={STEPS}",
    ]
    if r is not None:
        overrides += [f"r={r}", "method.adapter.dropout=0"]  # each rank draws masks of its own
    if method in ("relora", "remora"):
        overrides += [f"method.restart.every_steps={EVERY}", "method.restart.warmup_steps=2"]
    return compose(overrides)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*METHODS, *PARALLEL, *(":".join(row) for row in _all_rows())]
    parser.add_argument("--only", choices=names, nargs="+", metavar="ROW", help=f"of {', '.join(names)}; else all")
    add_options(parser, jobs=10, limit_s=540, run_limit_s=150)
    return parser.parse_args()


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
