"""A table from result files: Markdown and CSV, `paper | ours mean +- sd (n) | difference`. Nothing is typed in."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from mora.config.run_id import format_lr
from mora.config.source import is_committed

from .experiment import Experiment, Grid, last_step
from .launch import result_of

NOT_RUN = "not run"


def cell_values(grid: Grid, step: int) -> list[float] | None:
    """The metric in percent of every seed at a step; a diverged seed counts 0. None unless all seeds were run."""
    configs = grid.final()
    results = [usable(result_of(config), grid.scale) for config in configs]
    if not configs or any(result is None for result in results):
        return None
    return [_metric(result, step, grid.experiment.metric) for result in results if result is not None]


def usable(result: dict[str, Any] | None, scale: str) -> dict[str, Any] | None:
    """The result, unless its source is not that of a commit. Smoke results prove the path only and are shown as they are."""
    if result is None or scale == "smoke" or is_committed(result["source"]):
        return result
    return None


def render(name: str, experiment: Experiment, grids: list[Grid], scale: str, folder: Path) -> Path:
    """Writes `folder/<name>-<scale>.md` and `.csv`; returns the Markdown's path."""
    steps = grids[0].at_scale.steps
    lines = [f"# {experiment.title}", "", f"Scale {scale}. Each cell: paper | ours, mean +- sd (n) | difference.", ""]
    lines.append("| method | trainable | lr | " + " | ".join(f"step {s}" for s in steps) + " |")
    lines.append("|" + "---|" * (3 + len(steps)))
    rows = ["method,r,operator,lr,step,paper,mean,sd,n,seeds"]
    for grid in grids:
        paper = grid.paper_values()
        finals = grid.final()
        result = usable(result_of(finals[0]), scale) if finals else None
        count = f"{result['parameters']['trainable']:,}" if result else NOT_RUN
        rate = format_lr(finals[0].lr) if finals and finals[0].lr else "-"
        cells = []
        for i, step in enumerate(steps):
            printed = paper[i] if paper and len(paper) == len(steps) else None
            values = cell_values(grid, step)
            cells.append(_cell(printed, values))
            rows.append(_csv(grid, rate, step, printed, values))
        lines.append(f"| {grid.label()} | {count} | {rate} | " + " | ".join(cells) + " |")
    lines += ["", *_search_lines(grids)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{scale}.csv").write_text("\n".join(rows) + "\n")
    path = folder / f"{name}-{scale}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _search_lines(grids: list[Grid]) -> list[str]:
    """The learning-rate curves: every rate tried, the losing ones too."""
    lines = []
    for grid in grids:
        shown = []
        for config in grid.search():
            result = result_of(config)
            metric = grid.experiment.selection
            value = NOT_RUN if result is None else result["status"]
            if result is not None and result["status"] == "done":
                value = f"{result['metrics'][str(last_step(config, result))][metric]:.4g}"
            assert config.lr is not None
            shown.append(f"{format_lr(config.lr)}: {value}")
        if shown:
            lines.append(f"- {grid.label()}: " + ", ".join(shown))
    return ["Learning-rate search (rate: value_nll at its last step, lower is better):", "", *lines] if lines else []


def _metric(result: dict[str, Any], step: int, metric: str) -> float:
    return 0.0 if result["status"] == "diverged" else 100 * result["metrics"][str(step)][metric]


def _cell(paper: float | None, values: list[float] | None) -> str:
    printed = "-" if paper is None else f"{paper:g}"
    if values is None:
        return f"{printed} \\| {NOT_RUN}"
    mean = statistics.fmean(values)
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    difference = "" if paper is None else f" \\| {mean - paper:+.1f}"
    return f"{printed} \\| {mean:.1f}{spread} ({len(values)}){difference}"


def _csv(grid: Grid, rate: str, step: int, paper: float | None, values: list[float] | None) -> str:
    mean = sd = n = seeds = ""
    if values is not None:
        mean, n = f"{statistics.fmean(values):.4f}", str(len(values))
        sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        seeds = " ".join(f"{v:.4f}" for v in values)
    row = grid.row
    return ",".join(
        [
            row.method,
            str(row.r or ""),
            row.operator or "",
            rate,
            str(step),
            "" if paper is None else f"{paper:g}",
            mean,
            sd,
            n,
            seeds,
        ]
    )
