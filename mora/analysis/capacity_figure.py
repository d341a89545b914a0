"""The figure and the table of mora.analysis.capacity: the same bytes from the same measurements."""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.legend import Legend

from mora.suite.report.style import saved

from .capacity import LABELS

COLOURS = {
    "lora": "#1f4e9c",
    "lora_frozen_a": "#7fa8e0",
    "sharing": "#c0392b",
    "decouple": "#e67e22",
    "rotation": "#f1b24a",
    "projections": "#7d3c98",
    "tied_2r": "#1e8449",
    "tied_4r": "#82c99a",
}
SHIFT = 1.025  # arms side by side, by which each load is multiplied


def draw(measured: dict[str, Any], path: Path) -> Path:
    """Draw the SVG and return its path."""
    figure, axes = plt.subplot_mosaic(
        [["teacher", "steps 2", "steps 8"], ["legend", "accuracy 2", "accuracy 8"]],
        figsize=(15, 8),
        layout="constrained",
    )
    _teacher(axes["teacher"], measured["linear_teacher"])
    memory, settings = measured["associative_memory"], measured["settings"]
    for r in sorted({row["r"] for row in memory}):
        of_rank = [row for row in memory if row["r"] == r]
        _steps(axes[f"steps {r}"], of_rank, settings["steps"])
        _accuracy(axes[f"accuracy {r}"], of_rank)
        parameters = 2 * r * settings["D"]
        axes[f"steps {r}"].set_title(f"associative memory, {parameters:,} parameters (LoRA r={r})", fontsize=10)
    axes["legend"].axis("off")
    below = axes["legend"]
    for panel, title, place, columns in (
        ("teacher", "linear teacher", "upper center", 2),
        ("accuracy 2", "associative memory", "lower center", 1),
    ):
        named = axes[panel].get_legend_handles_labels()
        below.add_artist(Legend(below, *named, loc=place, title=title, ncols=columns, frameon=False))
    saved(figure, path)
    return path


def table(measured: dict[str, Any]) -> str:
    """Return the associative memory's results in Markdown: one line per arm and rank, one column per load."""
    rows = measured["associative_memory"]
    loads = list(dict.fromkeys(row["load"] for row in rows))
    lines = [
        "# Associative memory in one layer",
        "",
        "Steps until 99% of the keys are known, per seed, at the best learning rate of the first seed; if a seed never "
        f"got there, the share known after {measured['settings']['steps']} steps. `*`: that rate is the highest or "
        "lowest tried. Columns: bits to store per trainable parameter. [docs/capacity.md](../../docs/capacity.md) says what "
        "follows.",
        "",
        f"| arm | r | {' | '.join(f'{load:g}' for load in loads)} |",
        "|" + "---|" * (2 + len(loads)),
    ]
    for r, (name, label) in product(dict.fromkeys(row["r"] for row in rows), LABELS.items()):
        cells = [_cell(row) for row in rows if (row["r"], row["arm"]) == (r, name)]
        lines.append(f"| {label} | {r} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    seeds = zip(row["steps"], row["accuracy"], strict=True)
    shown = ", ".join(f"{100 * share:.0f}%" if steps is None else str(steps) for steps, share in seeds)
    return f"{shown}{'*' if row['edge'] else ''}"


def _teacher(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw the share of the teacher's energy against its rank, with the Gaussian teacher at the right end."""
    ranks = list(dict.fromkeys(row["teacher"] for row in rows))
    for r, style in zip(sorted({row["r"] for row in rows}), (":", "--", "-"), strict=True):
        for name, colour in (("lora", COLOURS["lora"]), ("sharing", COLOURS["sharing"])):
            shares = [
                statistics.mean(
                    row["share"] for row in rows if (row["teacher"], row["r"], row["arm"]) == (rank, r, name)
                )
                for rank in ranks
            ]
            ax.plot(range(len(ranks)), shares, style, color=colour, marker="o", ms=3, label=f"{LABELS[name]}, r={r}")
    ax.set_xticks(range(len(ranks)), ["Gaussian" if rank is None else str(rank) for rank in ranks])
    ax.set(xlabel="rank of the teacher, equal singular values", ylabel="share of its energy, best fit", yscale="log")
    ax.set_title("linear teacher (MoRA's other operators: as sharing)", fontsize=10)
    ax.grid(alpha=0.3)


def _steps(ax: Axes, rows: list[dict[str, Any]], max_steps: int) -> None:
    never = 1.5 * max_steps
    ax.axhline(never, color="grey", lw=0.5)
    _arms(ax, rows, "steps", never)
    ax.text(rows[0]["load"], 1.1 * never, f"not within {max_steps} steps", color="grey", fontsize=8)
    ax.set(ylabel="steps until 99% of the keys are known", yscale="log", ylim=(0.8, 2.2 * max_steps))


def _accuracy(ax: Axes, rows: list[dict[str, Any]]) -> None:
    _arms(ax, rows, "accuracy", 0.0)
    ax.set(ylabel="keys known in the end", ylim=(0, 1.05))


def _arms(ax: Axes, rows: list[dict[str, Any]], field: str, absent: float) -> None:
    """Draw one dot per seed, and a line through the medians."""
    for i, (name, label) in enumerate(LABELS.items()):
        of_arm = [row for row in rows if row["arm"] == name]
        loads = [row["load"] * SHIFT ** (i - len(LABELS) / 2) for row in of_arm]
        values = [[absent if v is None else v for v in row[field]] for row in of_arm]
        ax.plot(loads, [statistics.median(v) for v in values], color=COLOURS[name], lw=1.2, label=label)
        for load, seeds in zip(loads, values, strict=True):
            ax.plot([load] * len(seeds), seeds, ".", color=COLOURS[name], ms=5)
    ticks = sorted({row["load"] for row in rows})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set(xlabel="bits to store per trainable parameter (arms side by side)")
    ax.grid(alpha=0.3)
