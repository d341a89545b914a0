"""Loss curves from the raw logs beside the results, and spectra, as SVG with a Markdown caption.

Every rendering gives the same bytes.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mora.config import RunConfig
from mora.config.run_id import log_path, run_id, spectrum_path
from mora.errors import DamagedFileError
from mora.io import replace_file
from mora.results import MODULES, RunResult, Source, Spectrum, read_spectrum

from .cells import CellRuns
from .experiment import NAMES, Experiment
from .launch import ROOT
from .tables import NOT_RUN, models, notes
from .usable import log_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING_STEPS = 5
POINTS = 250  # of a curve where every seed has its own
FALL = 0.15  # the share of a run whose first fall is left above the panel: what sets methods apart comes after it
BRING = "copy it from the machine of the run, or remove it and the result beside it to repeat the run"
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # as many as Figure 4 has curves
CAPTIONS = {
    "figure": f"Each curve: training loss, averaged over seeds and over {SMOOTHING_STEPS} steps; band: the range of the "
    f"seeds. The first {FALL:.0%} of the steps may lie above the panel.",
    "spectrum": "Each bar: the number of singular values of delta W above 0.1, averaged over the layers of a kind of "
    "module and over seeds.",
}


def render(name: str, experiment: Experiment, rows: list[list[CellRuns]], scale: str, folder: Path) -> Path | None:
    """Write `folder/<name>-<scale>.svg`, with one panel per column, and its caption `.md`.

    Returns:
        The path of the picture; None if there is nothing to draw yet.
    """
    panels = list(zip(*rows, strict=True))
    figure = drawn(experiment, rows, scale)
    if figure is None:
        return None
    from .report.style import saved  # a second that a plan need not wait for

    path = folder / f"{name}-{scale}.svg"
    saved(figure, path)
    replace_file(path.with_suffix(".md"), _caption(path.name, experiment, panels, scale))
    return path


def drawn(
    experiment: Experiment, rows: list[list[CellRuns]], scale: str, width: float = 6.4, every_seed: bool = False
) -> Figure | None:
    """Draw one panel of `width` inches per column; None if there is nothing to draw yet.

    With `every_seed` each seed has its own line or dot.
    """
    panels = list(zip(*rows, strict=True))
    if not any(_shown(runs) for panel in panels for runs in panel):
        return None
    size = (width * len(panels), 0.625 * width)
    from matplotlib import pyplot as plt  # a second that a plan need not wait for

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    draw = _spectra if experiment.kind == "spectrum" else _losses
    small = 9 if width > 4 else 7
    figure.suptitle(textwrap.fill(experiment.title, int(12.5 * width) * len(panels)), fontsize=small)
    for ax, panel in zip(axes[0], panels, strict=True):
        draw(ax, list(panel), every_seed)
        missing = ", ".join(f"{runs.spec.label} ({_absent(runs)})" for runs in panel if not _shown(runs))
        about = f"scale {scale}, {panel[0].spec.column.name}"
        text = about + (f"; not drawn: {missing}" if missing else "")
        ax.set_title(textwrap.fill(text, int(12.5 * width)), fontsize=small)
        ax.grid(alpha=0.3)
        if ax.lines or ax.patches:
            ax.legend(frameon=False, fontsize=small)
    return figure


def _caption(picture: str, experiment: Experiment, panels: list[tuple[CellRuns, ...]], scale: str) -> str:
    """Return the picture's caption: what it shows, of which runs, and the commits that made them."""
    about = f"Scale {scale}, {models(panels)}. {CAPTIONS[experiment.kind]}"
    if experiment.minus_first:
        about += " Shown is the loss minus the first row's at the same step and seed, hence on the same sequences."
    lines = [f"# {experiment.title}", "", f"![{experiment.title}]({picture})", "", about]
    for note in notes(experiment):
        lines += ["", note]
    spectrum = experiment.kind == "spectrum"
    lines += ["", "| panel | shown | run | commit |" + (" of the spectrum |" if spectrum else "")]
    lines.append("|" + "---|" * (5 if spectrum else 4))
    for runs in (runs for panel in panels for runs in panel):
        shown = _shown(runs)
        if not shown:
            lines.append(
                f"| {runs.spec.column.name} | {runs.spec.label} | {_absent(runs)} | |" + (" |" if spectrum else "")
            )
        for config, result in shown:
            cells = [runs.spec.column.name, runs.spec.label, run_id(config), _commit(result.source)]
            measured = spectrum_of(config) if spectrum else None
            cells += [_commit(measured.source)] if measured else []
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _commit(source: Source | None) -> str:
    if source is None:
        return "source not recorded"
    return f"{(source.commit or 'unknown')[:10]}{', changed' if source.dirty else ''}"


def _shown(runs: CellRuns) -> list[tuple[RunConfig, RunResult]]:
    """Return the runs of a curve or of bars with their results; none unless all of them exist and can be drawn."""
    results = runs.results
    if len(results) < len(runs.final_runs):
        return []
    if runs.spec.experiment.kind == "spectrum":
        return results if all(spectrum_path(config).is_file() for config, _ in results) else []
    return results if all(result.status == "done" for _, result in results) else []


def _absent(runs: CellRuns) -> str:
    """Return why a curve or bars are not drawn."""
    there, wanted = len(runs.results), len(runs.final_runs)
    return NOT_RUN if not there else f"{there} of {wanted} seeds" if there < wanted else "cannot be drawn"


def _losses(axes: Axes, panel: list[CellRuns], every_seed: bool) -> None:
    what, first = "training loss (nats per token)", panel[0]
    shown = [(i, runs.spec.label, _curves(runs)) for i, runs in enumerate(panel) if _shown(runs)]
    if first.spec.experiment.minus_first:
        what = f"training loss minus {NAMES[first.spec.row.method]}'s (nats per token)"
        shown = [(i, label, curves - shown[0][2]) for i, label, curves in shown[1:]] if _shown(first) else []
    drawn = []
    for i, label, curves in shown:
        apart = max(1, curves.shape[1] // POINTS) if every_seed else 1  # many lines, so fewer points in each
        steps, curves = np.arange(1, curves.shape[1] + 1)[::apart], curves[:, ::apart]
        line = axes.plot(steps, curves.mean(0), ls=STYLES[i % len(STYLES)], lw=1.6, label=label)[0]
        if len(curves) > 1:
            axes.fill_between(steps, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2, lw=0)
        for curve in curves if every_seed else ():
            axes.plot(steps, curve, color=line.get_color(), lw=0.5, alpha=0.7)
        drawn.append(curves[:, int(FALL * curves.shape[1]) :])
    if drawn and first.spec.experiment.minus_first:
        axes.axhline(0, color="k", lw=0.8)
        drawn.append(np.zeros((1, 1)))
    if drawn:
        low, high = min(c.min() for c in drawn), max(c.max() for c in drawn)
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set(xlabel="step", ylabel=what)


def _spectra(axes: Axes, panel: list[CellRuns], every_seed: bool) -> None:
    width = 0.8 / len(panel)
    for i, runs in enumerate(panel):
        spectra = [spectrum_of(config) for config, _ in _shown(runs)]
        if not spectra:
            continue
        counts = np.array([[s.kinds[kind][runs.spec.column.metric] for kind in MODULES] for s in spectra if s])
        places = np.arange(len(MODULES)) + (i - (len(panel) - 1) / 2) * width
        axes.bar(places, counts.mean(0), width, label=runs.spec.label)
        for seed in counts if every_seed else ():
            axes.plot(places, seed, ".", color="k", ms=3)
    axes.set_xticks(range(len(MODULES)), [kind.removesuffix("_proj") for kind in MODULES])
    axes.set(ylabel="singular values of delta W above 0.1")


def spectrum_of(config: RunConfig) -> Spectrum | None:
    """Return the spectrum of a run; None if it was not measured. Raises ConfigError if its file is damaged."""
    path = spectrum_path(config)
    return read_spectrum(path) if path.is_file() else None


def _curves(runs: CellRuns) -> np.ndarray:
    """Return the smoothed training loss, (seeds, steps)."""
    losses = {log_path(config): _losses_of(config, result) for config, result in _shown(runs)}
    steps = max(map(len, losses.values()))
    for path, curve in losses.items():
        if len(curve) < steps:
            raise DamagedFileError(f"{path} is truncated: it has {len(curve)} steps, another seed has {steps}; {BRING}")
    return np.array([_smooth(curve) for curve in losses.values()])


def _losses_of(config: RunConfig, result: RunResult) -> list[float]:
    """Return the training loss of every step. Raises DamagedFileError if the log is missing or a loss is not a number."""
    path, losses = log_path(config), [row["loss"] for row in log_of(config, result) if "loss" in row]
    if not losses:
        raise DamagedFileError(f"{path} is missing, or holds no loss; {BRING}")
    for step, loss in enumerate(losses, 1):
        if not isinstance(loss, float | int) or not math.isfinite(loss):
            raise DamagedFileError(
                f"{path} is damaged (step {step}, loss={str(loss)[:80]!r}: expected a number); {BRING}"
            )
    return losses


def _smooth(values: list[float]) -> np.ndarray:
    kernel = np.ones(SMOOTHING_STEPS) / SMOOTHING_STEPS
    padded = np.concatenate([np.full(SMOOTHING_STEPS - 1, values[0]), values])
    return np.convolve(padded, kernel, mode="valid")


def output_folder(scale: str, kind: str) -> Path:
    """Return results/tables or results/figures, at scale smoke a folder under outputs/."""
    return ROOT / ("outputs/smoke" if scale == "smoke" else "results") / kind
