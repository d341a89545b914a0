"""Restarts, resume and loss on several ranks against one, as a table: what tests show on CPU ranks, on real GPUs.

python scripts/check_multi_gpu.py --out results/checks     # two GPUs, SmolLM2, bf16: minutes
python scripts/check_multi_gpu.py --ranks 1                # the same on one GPU
python scripts/check_multi_gpu.py --device cpu             # two CPU ranks, the tiny model, fp32
python scripts/check_multi_gpu.py --only remora:zero2 fft  # some rows: METHOD:PARALLEL, or all of a METHOD or PARALLEL

Each row is a run of UUID pairs with two restarts where the method has them. `checked` counts restarts: each has checked that
every rank holds the same weights, that the adapter's moments are zero and nobody else's changed, and that the adapter adds
nothing to the merged base; a run whose check fails ends there. The run is killed in its last step and started again from
its checkpoint of step 16. Differences are the largest of the steps that both have; of losses, in nats.

resumed     of the steps that are done twice
from_one    from the same computation in one process, whose micro batches are a rank's: plain torch; of a ZeRO-3 row, ZeRO-3
norm        the same of the gradient norms, relative
from_plain  of a ZeRO-3 row, from plain torch: its hooks rule out the fused layers and losses, and sum gradients in another
            order, so that it rounds elsewhere
noise       what rounding does to that method: plain torch against itself in micro batches half as large

Clipping is off. ZeRO sums the squares of the norm in another order, and the last bit of a coefficient is enough to round a
few weights of bf16 the other way, which after two steps is as large as noise. Without it, from_one is zero where all is
right, and the norms, which clipping is a function of, are compared.

Runs share the GPUs (--jobs), so step_s is theirs together; a run that hangs is killed with its ranks and its row fails. A
row that failed shows what was measured until then. Where the time is over, or on SIGTERM, the rest is `not run`.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from mora.checks.runner import CheckRunner, Outcome, Table, add_options, gpus, started_checks
from mora.config import RunConfig, compose
from mora.config.source import ROOT
from mora.errors import ends_in_one_line

METHODS = {"relora": 8, "remora": 8, "mora": 8, "lora": 8, "fft": None}
PARALLEL = ("ddp", "zero1", "zero2", "zero3")
STEPS, EVERY = 24, 8
SAVED_AT = 2 * EVERY  # the step of a checkpoint with one restart before it and one at it
BATCH = {"cpu": 16, "cuda": 40}  # small, since many runs share a GPU
TOLERANCE = 1e-4  # nats between losses that should be equal
NORM_TOLERANCE = 1e-3  # relative: a norm is a sum of 10^8 squares in fp32, added in another order
NOISE_TOLERANCE = 3  # in multiples of the noise; both are maxima over the steps of one run
COLUMNS = {
    "method": "", "parallel": "", "status": "", "checked": "d", "kept": ".4f", "rounding": ".1e", "from_one": ".1e",
    "norm": ".1e", "from_plain": ".1e", "noise": ".1e", "resumed_at": "d", "resumed": ".1e", "first_loss": ".4f",
    "last_loss": ".4f", "restart_s": ".2f", "step_s": ".3f", "peak_gib": ".1f", "launch_s": ".0f", "wall_s": ".0f",
}  # fmt: skip
Row = tuple[str, str]  # method, parallel


@ends_in_one_line("check_multi_gpu.py")
def main() -> int:
    options = _options()
    chosen = [row for row in _all_rows() if not options.only or {*row, ":".join(row)} & {*options.only}]
    ranked = {row: _ranked_config(options, *row) for row in chosen}
    alone = {key: _alone_config(options, *key) for row in chosen for key in _compared_with(row).values()}
    facts = {"device": options.device, "ranks": options.ranks, "steps": STEPS, "jobs": options.jobs}
    if options.device == "cuda":
        facts |= gpus(options.ranks, ranked[chosen[0]])
    with started_checks(options) as checks:
        table = Table("ranks", COLUMNS, options.out, facts)
        _fill(table, checks, alone, ranked)
    return 0 if all(row["status"] == "ok" for row in table.rows) else 1


def _all_rows() -> list[Row]:
    return [(method, parallel) for method in METHODS for parallel in PARALLEL]


def _compared_with(row: Row) -> dict[str, Row]:
    """Return the one-process runs to compare with, each as (method, "zero3", "halved", or "none" for plain torch)."""
    method, parallel = row
    if parallel != "zero3":
        return {"one": (method, "none")}
    return {"one": (method, "zero3"), "plain": (method, "none"), "halved": (method, "halved")}


def _fill(table: Table, checks: CheckRunner, alone: dict[Row, RunConfig], ranked: dict[Row, RunConfig]) -> None:
    """Add each row once its parts are done: the run on the ranks, killed and resumed, and the runs in one process."""
    ranks: dict[Row, Future[_Ranked]] = {}
    single: dict[Row, Future[Outcome]] = {}

    def start_ranks(slow: bool) -> None:
        for row, config in ranked.items():
            if (row[1] == "zero3") == slow:
                ranks[row] = checks.pool.submit(_killed_and_resumed, checks, row, config)

    start_ranks(slow=True)  # the slow ones first, so that nothing long is left for the end
    for i, (key, config) in enumerate(alone.items()):
        single[key] = checks.pool.submit(checks.run, f"{'-'.join(key)}-alone", config, checks.on(i))
    start_ranks(slow=False)
    left = list(ranked)
    while left:
        for row in left.copy():
            compared = {name: single[key] for name, key in _compared_with(row).items()}
            if ranks[row].done() and all(part.done() for part in compared.values()):
                table.add(**_row(row, ranks[row].result(), {name: part.result() for name, part in compared.items()}))
                left.remove(row)
                checks.remove("-".join(row))
        parts: set[Future[Any]] = {ranks[row] for row in left}
        parts |= {single[key] for row in left for key in _compared_with(row).values()}
        if waiting := [part for part in parts if not part.done()]:
            wait(waiting, return_when=FIRST_COMPLETED)


@dataclass(frozen=True)
class _Ranked:
    """A run on the ranks. `saved_at` is the step that it was resumed from; 0 if it was not killed as it should be."""

    killed: Outcome
    saved_at: int = 0
    resumed: Outcome = field(default_factory=lambda: Outcome(None))

    @property
    def whole(self) -> Outcome:
        return self.resumed if self.saved_at and self.resumed.losses else self.killed


def _killed_and_resumed(checks: CheckRunner, row: Row, config: RunConfig) -> _Ranked:
    name = "-".join(row)
    killed = checks.run(name, config, kill_at=f"after_step:{STEPS}")
    saved_at = checks.latest_step(name)
    if killed.status != "failed" or saved_at != SAVED_AT or len(killed.losses) != STEPS - 1:
        return _Ranked(killed)
    return _Ranked(killed, saved_at, checks.run(name, config))


def _row(row: Row, ranked: _Ranked, alone: dict[str, Outcome]) -> dict[str, Any]:
    killed, resumed, whole = ranked.killed, ranked.resumed, ranked.whole
    shown: dict[str, Any] = {"method": row[0], "parallel": row[1], "resumed_at": ranked.saved_at, **whole.measured()}
    shown |= {"wall_s": killed.seconds + resumed.seconds, "all_wall_s": [killed.seconds, resumed.seconds]}
    restarts = whole.restarts
    if restarts:
        shown |= {"kept": restarts[-1]["restart_kept"], "rounding": restarts[-1]["restart_rounding"]}
        shown |= {"restart_s": max(r["restart_s"] for r in restarts)}
    if whole.losses:
        shown |= {"checked": len(restarts), "first_loss": whole.losses[0], "last_loss": whole.losses[-1]}
    shown |= _differences(ranked, alone)
    parts = {"on the ranks": resumed if ranked.saved_at else killed}
    parts |= {f"in one process ({name})": outcome for name, outcome in alone.items()}
    for part, outcome in parts.items():
        if outcome.status != "done" or len(outcome.losses) != STEPS:
            status = "not run" if outcome.status == "not run" else "failed"
            return shown | {"status": status, "last_words": f"{part}, {outcome.status}: {outcome.words}"}
    right = ranked.saved_at == SAVED_AT and len(restarts) == (2 if row[0] in ("relora", "remora") else 0)
    equal = all(shown[name] <= TOLERANCE for name in ("from_one", "resumed")) and shown["norm"] <= NORM_TOLERANCE
    near = shown.get("from_plain", 0.0) <= max(TOLERANCE, NOISE_TOLERANCE * shown.get("noise", 0.0))
    return shown | {"status": "ok" if right and equal and near else "differs"}


def _differences(ranked: _Ranked, alone: dict[str, Outcome]) -> dict[str, float | None]:
    """Return the differences, as far as the runs came. A difference is None if the runs have no step in common."""
    whole, one = ranked.whole, alone["one"]
    norms = [[row["grad_norm"] for row in outcome.rows if "loss" in row] for outcome in (whole, one)]
    differences = {
        "from_one": _largest(whole.losses, one.losses),
        "norm": _largest([a / b for a, b in zip(*norms, strict=False)], [1.0] * STEPS),
    }
    if ranked.saved_at:
        differences["resumed"] = _largest(ranked.resumed.losses[SAVED_AT:], ranked.killed.losses[SAVED_AT:])
    if "plain" in alone:
        differences["from_plain"] = _largest(whole.losses, alone["plain"].losses)
        differences["noise"] = _largest(alone["halved"].losses, alone["plain"].losses)
    return differences


def _largest(some: list[float], others: list[float]) -> float | None:
    """Return the largest difference over the steps that both have; NaN, which is within no tolerance, if one is."""
    differences = [abs(a - b) for a, b in zip(some, others, strict=False)]
    return math.nan if any(map(math.isnan, differences)) else max(differences, default=None)


def _alone_config(options: argparse.Namespace, method: str, how: str) -> RunConfig:
    parallel, parts = ("none", 2) if how == "halved" else (how, 1)
    return _config(options, method, parallel, 1, BATCH[options.device] // options.ranks // parts)


def _ranked_config(options: argparse.Namespace, method: str, parallel: str) -> RunConfig:
    return _config(options, method, parallel, options.ranks, BATCH[options.device] // options.ranks)


def _config(options: argparse.Namespace, method: str, parallel: str, ranks: int, micro: int) -> RunConfig:
    on_cpu, r, batch = options.device == "cpu", METHODS[method], BATCH[options.device]
    overrides = [
        "task=uuid",
        f"scale={'smoke' if on_cpu else 'lite'}",
        f"method={method}",
        f"hardware={'cpu' if on_cpu else 'gpu1'}",
        f"hardware.processes={ranks}",
        f"hardware.parallel={parallel}",
        f"hardware.micro_batch_size={micro}",
        f"task.train.global_batch_size={batch}",
        f"task.data.pairs={batch if on_cpu else 200}",
        "hardware.cuda_graphs=false",
        f"task.train.stop_step={STEPS}",
        "task.train.warmup_steps=4",
        "task.train.max_grad_norm=1e9",
        "task.train.adam_eps=1e-6",  # or the update for a gradient near zero is mere rounding
        f"lr={'1e-4' if method == 'fft' else '1e-3'}",
        f"task.train.checkpoint_every_steps={SAVED_AT}",
        "task.train.log_every_steps=1",  # so that all steps until the kill are known
        "task.evaluation.tasks=[]",
        "task.evaluation.at_steps=[]",
        f"task.evaluation.batch_size={batch}",
        f"task.evaluation.loss_every_steps={STEPS}",
    ]
    if r is not None:
        overrides += [f"r={r}", "method.adapter.dropout=0"]  # with dropout, each rank would draw its own masks
    if method in ("relora", "remora"):
        overrides += [f"method.restart.every_steps={EVERY}", "method.restart.warmup_steps=2"]
    return compose(overrides)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*METHODS, *PARALLEL, *(":".join(row) for row in _all_rows())]
    parser.add_argument("--only", choices=names, nargs="+", metavar="ROW", help=f"of {', '.join(names)}; else all")
    add_options(parser, jobs=10, limit_s=540, run_limit_s=200)
    return parser.parse_args()


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
