"""Every run that is missing, with what it costs, and the totals: `make table1 PLAN=1`."""

from __future__ import annotations

from typing import Any

from mora.analysis.cost import Cost, cost
from mora.analysis.memory import GIB, GPU_BYTES, RESERVE
from mora.config import RunConfig, compose, run_id
from mora.config.compose import load
from mora.config.schema import Hardware

from .experiment import Grid
from .launch import ROOT
from .result import read, result_of, stands, unusable, usable

COLUMNS = (
    f"{'run':44} {'steps':>6} {'tokens':>8} {'PFLOP':>8} {'trainable':>13} "
    f"{'weights':>8} {'grads':>6} {'optim':>6} {'activ':>6} {'logits':>6} {'GiB/GPU':>8} {'micro':>6} {'shadow':>7} "
    f"{'GPU time':>8} {'disk':>6}"
)


def text(grids: list[Grid], hardware: str) -> str:
    """A line a run on the hardware of that name that has no usable result, then totals and what the numbers rest on; what
    results there are that do not count, and why.

    Final runs whose setting is not chosen yet are counted at the first of the grid.
    Raises: ConfigError, also where a result is damaged, or that hardware cannot share out a run's batch.
    """
    chosen, measured = _hardware(hardware), _results()
    wanted = {run_id(config): config for grid in grids for config in grid.runs(stands)}
    found = [config for config in wanted.values() if not usable(result_of(config), config.scale.name)]
    cells = len({tuple(grid.base) for grid in grids if grid.exists})
    everything = f"{cells} cells (a task, method and rank each), {len(wanted)} runs"
    if not found:
        return f"{everything}; nothing is missing"
    runs = [load(c.model_dump(mode="json") | {"hardware": chosen.model_dump()}) for c in found]
    costs = [(run, cost(run, measured.get((run.scale.name, run.task.name), []))) for run in runs]
    lines = [COLUMNS, *(_line(run, needs) for run, needs in costs), "", f"{everything}; missing:"]
    return "\n".join([*lines, *_totals(costs, chosen), *_unusable(found)])


def _unusable(missing: list[RunConfig]) -> list[str]:
    """Results that are there and do not count."""
    lines = []
    for config in missing:
        result, scale = result_of(config), config.scale.name
        if result is not None:
            again = "not repeated by the same source" if stands(result, scale) else "run again, and kept in unusable/"
            lines.append(f"{run_id(config)} does not count: {unusable(result, scale)}; {again}")
    return lines


def _hardware(name: str) -> Hardware:
    """Of configs/hardware, whatever the task."""
    return compose(["task=c4", "method=fft", f"hardware={name}"]).hardware


def _results() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Results by scale and task, for the length of their data."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted((ROOT / "results" / "runs").glob("*.json")):
        result = read(path)
        found.setdefault((result["config"]["scale"]["name"], result["config"]["task"]["name"]), []).append(result)
    return found


def _line(run: RunConfig, found: Cost) -> str:
    m = found.memory
    parts = [f"{part / GIB:{width}.1f}" for part, width in _sized(m)]
    micro = str(found.micro_batch_size) if found.micro_batch_size else "none"
    return (
        f"{run_id(run):44} {_count(found.steps):>6} {_bounded(found):>8} {_number(found.flops, 1e15):>8} "
        f"{found.trainable:>13,} {' '.join(parts)} {m.gpu / GIB:8.1f} {micro:>6} {m.shadow / GIB:7.1f} "
        f"{_time(found.gpu_hours):>8} {found.disk / GIB:6.1f}"
    )


def _sized(m: Any) -> list[tuple[float, int]]:
    return [(m.weights, 8), (m.gradients, 6), (m.optimizer, 6), (m.activations, 6), (m.logits, 6)]


def _count(value: int | None) -> str:
    return "?" if value is None else str(value)


def _number(value: float | None, unit: float) -> str:
    return "?" if value is None else f"{value / unit:,.1f}"


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{60 * hours:.1f} min" if hours < 1 else f"{hours:,.1f} h"


def _bounded(found: Cost) -> str:
    """Tokens in millions; `<` where sequences may be shorter than the longest."""
    return "?" if found.tokens is None else f"{'<' if found.at_most else ''}{found.tokens / 1e6:,.0f}M"


def _totals(costs: list[tuple[RunConfig, Cost]], hardware: Hardware) -> list[str]:
    flops = sum(found.flops or 0 for _, found in costs)
    unknown = sum(found.flops is None for _, found in costs)
    too_large = [run_id(run) for run, found in costs if found.micro_batch_size is None]
    disk, checkpoints = sum(f.disk for _, f in costs) / GIB, max(f.checkpoints for _, f in costs) / GIB
    lines = [
        f"{len(costs)} runs, {flops / 1e18:,.1f} EFLOP, {_hours(costs, hardware)}; {disk:,.0f} GiB of adapters and whole "
        f"models are left, and up to {checkpoints:,.0f} GiB of checkpoints a run on the way.",
        f"micro: {_micro(hardware)}; set it with hardware.micro_batch_size. Memory in GiB at that size, shadow in CPU "
        "memory of rank 0.",
        "Tokens marked < take every sequence for as long as the longest. Evaluation is not counted.",
    ]
    sources: dict[str, int] = {}
    for _, found in costs:
        sources[found.rate_source] = sources.get(found.rate_source, 0) + 1
    lines += [f"speed of {n} runs: {source}" for source, n in sources.items()]
    if hardware.world_size > 1 and hardware.device != "cpu":
        lines.append("Several GPUs are extrapolated from one: what they say to each other is not in the hours.")
    if unknown:
        lines.append(f"{unknown} runs have data whose size is known after `make data`.")
    if too_large:
        lines.append(f"do not fit on {hardware.name}, not even one sequence at a time: {', '.join(too_large)}")
    return lines


def _hours(costs: list[tuple[RunConfig, Cost]], hardware: Hardware) -> str:
    if hardware.device == "cpu":
        return f"hours not known on {hardware.name}"
    hours = sum(found.gpu_hours or 0 for _, found in costs)
    days = hours / hardware.world_size / 24
    on = f"{hardware.name} ({hardware.world_size} GPUs: {days:,.1f} days)"
    return f"{hours:,.0f} GPU hours of training at most on {on}"


def _micro(hardware: Hardware) -> str:
    if hardware.device == "cpu":
        return f"the sequences a pass of a rank that are set; how much memory {hardware.name} has is not known"
    return f"the most sequences a pass of a rank that fits {GPU_BYTES / GIB:.0f} GiB less {RESERVE:.0%}"
