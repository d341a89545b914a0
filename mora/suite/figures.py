"""Loss curves from the raw logs beside the results, as SVG that is the same byte for byte on every rendering."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from mora.config.source import ROOT
from mora.train import log

from .experiment import Experiment, Grid
from .launch import result_of, result_path
from .tables import usable

SMOOTHING_STEPS = 5
STYLES = ("-", "--", "-.", ":")


def render(name: str, experiment: Experiment, grids: list[Grid], scale: str, folder: Path) -> Path:
    """Writes `folder/<name>-<scale>.svg`; curves are means over seeds, bands their range."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), constrained_layout=True)
    missing = []
    for i, grid in enumerate(grids):
        curves = _curves(grid, scale)
        if curves is None:
            missing.append(grid.label())
            continue
        steps = np.arange(1, curves.shape[1] + 1)
        line = axes.plot(steps, curves.mean(0), STYLES[i % len(STYLES)], lw=1.6, label=grid.label())[0]
        if len(curves) > 1:
            axes.fill_between(steps, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2, lw=0)
    axes.set(xlabel="step", ylabel="training loss (nats a token)")
    axes.set_title(f"scale {scale}" + (f"; not run: {', '.join(missing)}" if missing else ""), fontsize=9)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{scale}.svg"
    with matplotlib.rc_context({"svg.hashsalt": "mora", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return path


def _curves(grid: Grid, scale: str) -> np.ndarray | None:
    """Training loss, (seeds, steps), smoothed; None unless every seed was run to its end."""
    curves = []
    for config in grid.final():
        result = usable(result_of(config), scale)
        if result is None or result["status"] != "done":
            return None
        rows = log.read(result_path(config).with_suffix("").with_suffix(".log.jsonl"))
        curves.append(_smooth([row["loss"] for row in rows if "loss" in row]))
    return np.array(curves) if curves else None


def _smooth(values: list[float]) -> np.ndarray:
    kernel = np.ones(SMOOTHING_STEPS) / SMOOTHING_STEPS
    padded = np.concatenate([np.full(SMOOTHING_STEPS - 1, values[0]), values])
    return np.convolve(padded, kernel, mode="valid")


def output_folder(scale: str, kind: str) -> Path:
    """results/tables or results/figures; smoke stays in outputs/."""
    return ROOT / ("outputs/smoke" if scale == "smoke" else "results") / f"{kind}s"
