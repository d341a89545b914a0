"""The missing runs with their costs, and the totals, as `make table1 PLAN=1` prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mora.config import RunConfig, compose, run_id
from mora.config.hardware_schema import Hardware
from mora.config.load import load
from mora.planner.cost import Cost, cost
from mora.planner.gpus import GIB, H100, Gpu
from mora.planner.memory import RESERVE
from mora.results import STORE, RunResult

from .cell_specs import CellSpec
from .cells import resolve
from .launch import ROOT
from .usable import is_current, rejection_reason, reportable, result_of

NAME = 66  # the width of the column that `name_of` fills
HEAD = (  # name, unit, width
    ("steps", "", 6),
    ("tokens", "M", 8),
    ("compute", "PFLOP", 9),
    ("trainable", "", 13),
    ("weights", "GiB", 8),
    ("grads", "GiB", 6),
    ("optim", "GiB", 6),
    ("activ", "GiB", 6),
    ("logits", "GiB", 6),
    ("graphs", "GiB", 6),
    ("a GPU", "GiB", 8),
    ("micro", "seq", 6),
    ("shadow", "GiB", 7),
    ("GPU time", "", 9),
    ("disk", "GiB", 7),
)
COLUMNS = "\n".join(
    f"{first:{NAME}} " + " ".join(f"{part[row]:>{part[2]}}" for part in HEAD) for row, first in ((0, "run"), (1, ""))
)


def text(specs: list[CellSpec], hardware: str, settings: Sequence[str] = (), gpu: Gpu = H100) -> str:
    """Return one line per missing run with its cost on that hardware, then the totals and the basis of the estimates.

    Then come the results that do not count, with the reason. Final runs whose setting is not chosen yet are planned with
    the first candidate of the search.

    Args:
        specs: The cells.
        hardware: A name in configs/hardware.
        settings: Overrides of the hardware.
        gpu: The GPU whose memory and speed are assumed.

    Raises:
        DamagedFileError: A result is damaged.
        ConfigError: The hardware cannot divide a run's batch among its processes.
    """
    chosen, measured = _hardware(hardware, settings), _results()
    wanted = {run_id(config): config for spec in specs for config in resolve(spec, is_current).needed}
    missing = [config for config in wanted.values() if not reportable(result_of(config), config.scale.name)]
    cells = len({tuple(spec.base) for spec in specs if spec.exists})
    everything = f"{cells} cell{'s' * (cells != 1)} (a task, method and rank each), {len(wanted)} runs"
    if not missing:
        return f"{everything}; nothing is missing"
    runs = [load(c.model_dump(mode="json") | {"hardware": _as_there(c, chosen, settings)}) for c in missing]
    costs: list[tuple[RunConfig, Cost]] = []
    unknown = []
    for run in runs:
        try:
            costs.append((run, cost(run, measured.get((run.scale.name, run.task.name), []), gpu)))
        except ValueError as error:  # the model or method cannot be counted without its weights
            unknown.append(f"{name_of(run):{NAME}} cost unknown: {error}")
    lines = [COLUMNS, *(_line(run, needs) for run, needs in costs), *unknown, "", f"{everything}; missing:"]
    totals = _totals(costs, chosen, gpu) if costs else []
    return "\n".join([*lines, *totals, *_unusable(missing)])


def _as_there(config: RunConfig, chosen: Hardware, settings: Sequence[str]) -> dict[str, Any]:
    """Return the chosen hardware, with what the run's task says about training without padding unless `settings` say it."""
    own = {"micro_batch_tokens", "padding_free"}
    given = {setting.partition("=")[0] for setting in settings}
    if given & {f"hardware.{name}" for name in (*own, "micro_batch_size")}:
        own = set()
    return chosen.model_dump() | config.hardware.model_dump(include=own)


def _unusable(missing: list[RunConfig]) -> list[str]:
    """Return one line per existing result that does not count."""
    lines = []
    for config in missing:
        result, scale = result_of(config), config.scale.name
        if result is not None:
            current = is_current(result, scale)
            again = (
                "not repeated by the same changed source" if current else "repeated; the old result moves to unusable/"
            )
            lines.append(f"{run_id(config)} does not count: {rejection_reason(result, scale)}; {again}")
    return lines


def _hardware(name: str, settings: Sequence[str]) -> Hardware:
    """Compose the hardware, with a batch size that any can divide; a run's own size is checked when it is put there."""
    whatever = ["task.train.global_batch_size=55440"]
    of_hardware = [text for text in settings if text.startswith("hardware.")]
    return compose(["task=c4", "method=fft", f"hardware={name}", *whatever, *of_hardware]).hardware


def name_of(run: RunConfig) -> str:
    """Return the run's id, the paper's rank if the run's stands for another, and settings known only to the id's hash."""
    more = [] if run.method.adapter is None else run.method.adapter.remarks
    if run.r is not None and run.model.stands_for(run.r) != run.r:
        more = [str(run.rank_text), *more]
    if run.method.restart is not None:
        more = [*more, f"every={run.method.restart.every_steps}"]
    return " ".join([run_id(run), *more])


def _results() -> dict[tuple[str, str], list[RunResult]]:
    """Return the results by scale and task; they tell the length of the data."""
    by_task: dict[tuple[str, str], list[RunResult]] = {}
    for result in STORE.all(ROOT / "results" / "runs"):
        by_task.setdefault((result.scale, result.task), []).append(result)
    return by_task


def _line(run: RunConfig, estimate: Cost) -> str:
    m = estimate.memory
    parts = [f"{part / GIB:{width}.1f}" for part, width in _sized(m)]
    micro = str(estimate.micro_batch_size) if estimate.micro_batch_size else "none"
    return (
        f"{name_of(run):{NAME}} {_count(estimate.steps):>6} {_bounded(estimate):>8} {_number(estimate.flops, 1e15):>9} "
        f"{estimate.trainable:>13,} {' '.join(parts)} {m.gpu / GIB:8.1f} {micro:>6} {m.shadow / GIB:7.1f} "
        f"{_time(estimate.gpu_hours):>9} {estimate.disk / GIB:7.1f}"
    )


def _sized(m: Any) -> list[tuple[float, int]]:
    return [(m.weights, 8), (m.gradients, 6), (m.optimizer, 6), (m.activations, 6), (m.logits, 6), (m.graphs, 6)]


def _count(value: int | None) -> str:
    return "?" if value is None else str(value)


def _number(value: float | None, unit: float) -> str:
    if value is None:
        return "?"
    return f"{value / unit:,.{1 if value >= 10 * unit else 3}f}"


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{60 * hours:.1f} min" if hours < 1 else f"{hours:,.1f} h"


def _bounded(estimate: Cost) -> str:
    """Return the millions of tokens, after `<` if sequences may be shorter than the longest."""
    if estimate.tokens is None:
        return "?"
    return f"{'<' if estimate.at_most else ''}{estimate.tokens / 1e6:,.{0 if estimate.tokens >= 1e7 else 1}f}"


def _totals(costs: list[tuple[RunConfig, Cost]], hardware: Hardware, gpu: Gpu) -> list[str]:
    flops = sum(estimate.flops or 0 for _, estimate in costs)
    unknown = sum(estimate.flops is None for _, estimate in costs)
    too_large = [run_id(run) for run, estimate in costs if estimate.micro_batch_size is None]
    disk, checkpoints = sum(f.disk for _, f in costs) / GIB, max(f.checkpoints for _, f in costs) / GIB
    lines = [
        f"{len(costs)} runs, {flops / 1e18:,.1f} EFLOP, {_hours(costs, hardware)}; {disk:,.0f} GiB of adapters and whole "
        f"models are left, and up to {checkpoints:,.0f} GiB of checkpoints per run meanwhile.",
        f"micro: {_micro(hardware, gpu)}; set it with hardware.micro_batch_size (of runs without padding, "
        "hardware.micro_batch_tokens). Memory in GiB at that size; shadow: exact sums of restarts, in CPU memory of rank 0.",
        "Tokens marked < count every sequence as long as the longest. Not counted: evaluation, and what a search adds once "
        "it has run (a second seed of its best two rates, rates beyond the edge of its grid).",
        "A final run stands at the first rate of its grid until the search has chosen one.",
    ]
    sources: dict[str, int] = {}
    for _, estimate in costs:
        sources[estimate.time_source] = sources.get(estimate.time_source, 0) + 1
    lines += [f"speed of {n} runs: {source}" for source, n in sources.items()]
    if hardware.world_size > 1 and hardware.device != "cpu":
        lines.append("Multi-GPU hours are extrapolated from one GPU and exclude communication.")
    if unknown:
        lines.append(f"{unknown} runs need data whose size is unknown until `make data`.")
    if too_large:
        lines.append(f"do not fit on {hardware.name}, even with one sequence per pass: {', '.join(too_large)}")
    return lines


def _hours(costs: list[tuple[RunConfig, Cost]], hardware: Hardware) -> str:
    if hardware.device == "cpu":
        return f"unknown hours on {hardware.name}"
    hours = sum(estimate.gpu_hours or 0 for _, estimate in costs)
    days = hours / hardware.world_size / 24
    on = f"{hardware.name} ({hardware.world_size} GPUs: {days:,.1f} days)"
    return f"{_time(hours)} of GPU time for training on {on}"


def _micro(hardware: Hardware, gpu: Gpu) -> str:
    if hardware.device == "cpu":
        return f"the sequences per pass of a rank that are set; how much memory {hardware.name} has is not known"
    return f"the most sequences per pass of a rank that fits {gpu.memory / GIB:.0f} GiB ({gpu.name}) less {RESERVE:.0%}"
