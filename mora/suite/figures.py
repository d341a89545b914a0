"""Loss curves from the raw logs beside the results, and spectra, as SVG that every rendering gives byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from mora.config.run_id import result_path, run_id
from mora.train import log

from .cells import results
from .experiment import Experiment, Grid
from .launch import ROOT

SMOOTHING_STEPS = 5
FALL = 0.15  # the share of a run whose first fall is left above the panel: what sets methods apart comes after it
STYLES = ("-", "--", "-.", ":")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")  # in the order of Figure 5
Draw = Callable[[Axes, list[Grid]], list[str]]


def render(name: str, experiment: Experiment, rows: list[list[Grid]], scale: str, folder: Path) -> Path | None:
    """Writes `folder/<name>-<scale>.svg`, a panel a column; None where there is nothing to draw yet."""
    panels = list(zip(*rows, strict=True))
    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 4.0), squeeze=False, layout="constrained")
    draw: Draw = _spectra if experiment.kind == "spectrum" else _losses
    for ax, panel in zip(axes[0], panels, strict=True):
        missing = draw(ax, list(panel))
        about = f"scale {scale}, {panel[0].column.name}"
        ax.set_title(about + (f"; not run: {', '.join(missing)}" if missing else ""), fontsize=9)
        ax.grid(alpha=0.3)
        if ax.lines or ax.patches:
            ax.legend(frameon=False, fontsize=9)
    path = folder / f"{name}-{scale}.svg"
    drawn = any(ax.lines or ax.patches for ax in axes[0])
    if drawn:
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "mora", "svg.fonttype": "none"}):
            figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return path if drawn else None


def _losses(axes: Axes, panel: list[Grid]) -> list[str]:
    """Curves are means over seeds, bands their range. Returns the labels of what was not run."""
    missing, drawn = [], []
    for i, grid in enumerate(panel):
        curves = _curves(grid)
        if curves is None:
            missing.append(grid.label())
            continue
        steps = np.arange(1, curves.shape[1] + 1)
        line = axes.plot(steps, curves.mean(0), STYLES[i % len(STYLES)], lw=1.6, label=grid.label())[0]
        if len(curves) > 1:
            axes.fill_between(steps, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2, lw=0)
        drawn.append(curves)
    if drawn:
        after = [curves[:, int(FALL * curves.shape[1]) :] for curves in drawn]
        low, high = min(c.min() for c in after), max(c.max() for c in after)
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set(xlabel="step", ylabel="training loss (nats a token)")
    return missing


def _spectra(axes: Axes, panel: list[Grid]) -> list[str]:
    """Bars: singular values of delta W above 0.1 a kind of module, mean over layers and seeds."""
    missing, width = [], 0.8 / len(panel)
    for i, grid in enumerate(panel):
        found = [spectrum_of(config) for config, _ in results(grid)]
        if not found or any(spectrum is None for spectrum in found):
            missing.append(grid.label())
            continue
        heights = [np.mean([s["kinds"][kind][grid.column.metric] for s in found if s]) for kind in MODULES]
        axes.bar(np.arange(len(MODULES)) + (i - (len(panel) - 1) / 2) * width, heights, width, label=grid.label())
    axes.set_xticks(range(len(MODULES)), [kind.removesuffix("_proj") for kind in MODULES])
    axes.set(ylabel="singular values of delta W above 0.1")
    return missing


def spectrum_path(config: Any) -> Path:
    """Beside the folder of the runs' results: results/spectra/<run_id>.json."""
    return result_path(config).parent.parent / "spectra" / f"{run_id(config)}.json"


def spectrum_of(config: Any) -> dict[str, Any] | None:
    """The spectrum of a run, where it was measured."""
    path = spectrum_path(config)
    return json.loads(path.read_text()) if path.is_file() else None


def _curves(grid: Grid) -> np.ndarray | None:
    """Training loss, (seeds, steps), smoothed; None unless every seed was run to its end."""
    curves = []
    for config, result in results(grid):
        if result["status"] != "done":
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
    return ROOT / ("outputs/smoke" if scale == "smoke" else "results") / kind
