"""Loss curves and spectra as SVG, with a Markdown caption.

Rendering the same results again gives the same bytes.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mora.config import RunConfig
from mora.config.run_id import run_id, spectrum_path
from mora.io import replace_file
from mora.results import MODULES, RunResult, Source, Spectrum, read_spectrum

from . import experiments, loss_curves
from .cells import ResolvedCell, higher_is_better
from .experiments import Column, Experiment
from .launch import ROOT
from .loss_curves import FALL, SMOOTHING_STEPS
from .tables import NOT_RUN, models, notes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 2  # panels side by side, if there is room
CAPTIONS = {
    "figure": f"Each curve: training loss, averaged over seeds and over {SMOOTHING_STEPS} steps; band: the range of the "
    f"seeds. The first {FALL:.0%} of the steps may lie above the panel. Vertical lines: restarts, dotted, from the logs of "
    "the runs, and ends of epochs, dashed, if they are few.",
    "spectrum": "Each bar: the number of singular values of delta W above 0.1, averaged over the layers of a kind of "
    "module and over seeds; whisker: the range of the seeds.",
}


def render(name: str, experiment: Experiment, rows: list[list[ResolvedCell]], scale: str, folder: Path) -> Path | None:
    """Write `folder/<name>-<scale>.svg`, with one panel per column, and its caption `.md`.

    Returns:
        The path of the picture; None if there is nothing to draw yet.
    """
    panels = _panels(rows)
    figure = drawn(experiment, rows, scale)
    if figure is None:
        return None
    from .report.style import saved  # takes a second to import, which a plan need not wait for

    path = folder / f"{name}-{scale}.svg"
    saved(figure, path)
    replace_file(path.with_suffix(".md"), _caption(path.name, experiment, panels, scale))
    return path


def drawn(
    experiment: Experiment, rows: list[list[ResolvedCell]], scale: str, width: float = 6.4, every_seed: bool = False
) -> Figure | None:
    """Draw one panel per column; return None if there is nothing to draw yet.

    A single panel is `width` inches wide. With `every_seed` each seed has its own line or dot. A narrow figure has its
    panels below each other.
    """
    panels = _panels(rows)
    if not any(_shown(cell) for panel in panels for cell in panel):
        return None
    across = min(len(panels), ACROSS if width > 4 else 1)
    down, width = math.ceil(len(panels) / across), width if across == 1 else 0.75 * width
    from matplotlib import pyplot as plt  # takes a second to import, which a plan need not wait for

    plt.switch_backend("Agg")
    size = (width * across, 0.625 * width * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    draw = _spectra if experiment.kind == "spectrum" else loss_curves.draw
    small = 9 if width > 4 else 7
    above = [experiment.title, *([loss_curves.about(panels)] if experiment.kind == "figure" else [])]
    figure.suptitle("\n".join(textwrap.fill(text, int(12.5 * width) * across) for text in above), fontsize=small)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, panel in zip(axes.flat, panels, strict=False):
        draw(ax, panel, every_seed)
        title = (textwrap.fill(line, int(12.5 * width)) for line in _title(panel))
        ax.set_title("\n".join(title), fontsize=small)
        ax.grid(alpha=0.3)
        if across == 1 and (ax.lines or ax.patches):
            ax.legend(frameon=False, fontsize=small)
    if across > 1:
        named = {
            label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend([*named.values()], [*named], loc="outside lower center", ncols=4, frameon=False, fontsize=small)
    return figure


def _title(panel: list[ResolvedCell]) -> list[str]:
    """Return, as lines, what a panel shows, and which curves or bars are missing or lack a seed."""
    first = panel[0].spec
    minus = [f"minus {first.label}"] if first.experiment.minus_first else []
    absent = ", ".join(f"{cell.spec.curve_label} ({_absent(cell)})" for cell in panel if not _shown(cell))
    partly = (cell for cell in panel if 0 < len(_shown(cell)) < len(cell.final_runs))
    fewer = ", ".join(
        f"{cell.spec.curve_label}, {len(_shown(cell))} of {len(cell.final_runs)} seeds" for cell in partly
    )
    lacking = [f"not drawn: {absent}"] * bool(absent) + [fewer] * bool(fewer)
    about = [f"scale {first.scale}, {first.column.name}"]
    return [*about, "; ".join([*minus, *lacking])] if minus else ["; ".join([*about, *lacking])]


def _panels(rows: list[list[ResolvedCell]]) -> list[list[ResolvedCell]]:
    """Return the cells of each column, without those that the experiment leaves out."""
    return [[cell for cell in column if cell.spec.exists] for column in zip(*rows, strict=True)]


def _caption(picture: str, experiment: Experiment, panels: list[list[ResolvedCell]], scale: str) -> str:
    """Return the picture's caption: what it shows, the runs shown, and the commits that made them."""
    about = f"Scale {scale}, {models(panels)}. {CAPTIONS[experiment.kind]}"
    if experiment.minus_first:
        about += (
            " Shown is the loss minus that of the panel's first row at the same step and seed, hence on the same data."
        )
    lines = [f"# {experiment.title}", "", f"![{experiment.title}]({picture})", "", about]
    for panel in panels if experiment.table else ():
        lines += ["", text] if (text := _orders(panel)) else []
    for note in notes(experiment):
        lines += ["", note]
    spectrum = experiment.kind == "spectrum"
    lines += ["", "| panel | shown | run | commit |" + (" of the spectrum |" if spectrum else "")]
    lines.append("|" + "---|" * (5 if spectrum else 4))
    for cell in (cell for panel in panels for cell in panel):
        shown = _shown(cell)
        if not shown:
            lines.append(
                f"| {cell.spec.column.name} | {_full_label(cell)} | {_absent(cell)} | |" + (" |" if spectrum else "")
            )
        for config, result in shown:
            cells = [cell.spec.column.name, _full_label(cell), run_id(config), _commit(result.source)]
            measured = spectrum_of(config) if spectrum else None
            cells += [_commit(measured.source)] if measured else []
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _full_label(cell: ResolvedCell) -> str:
    """Return the row's label, in which its name in the legend, if any, replaces its settings."""
    spec = cell.spec
    if spec.row.called is None:
        return spec.label
    return f"{replace(spec, row=spec.row.model_copy(update={'settings': []})).label}, {spec.row.called}"


def _orders(panel: list[ResolvedCell]) -> str:
    """Return the order of the rows by their final training loss, and by the same runs' numbers in the table."""
    (column,) = (c for c in _columns_of_table(panel[0]) if c.name == panel[0].spec.column.name)
    losses, scores = {}, {}
    for cell in panel:
        measured = [cell.metrics(config, result).get(column.metric) for config, result in _shown(cell)]
        if measured and all(measured):
            losses[cell.spec.label] = statistics.fmean(curve[-1] for curve in loss_curves.by_seed(cell).values())
            scores[cell.spec.label] = statistics.fmean(metric.value for metric in measured if metric)
    if len(losses) < 2:
        return ""
    turn = higher_is_better(column.metric)
    ours, theirs = sorted(losses, key=losses.__getitem__), sorted(scores, key=scores.__getitem__, reverse=turn)
    number = experiments.number_of(panel[0].spec.experiment.table or "")
    return (
        f"{panel[0].spec.column.name}: this is loss on training sequences. At the end, best first: "
        f"{', '.join(f'{label} {losses[label]:.2f}' for label in ours)}. {number} scores the same runs on held-out text, "
        f"and ranks them {'alike' if ours == theirs else 'otherwise'}: "
        f"{', '.join(f'{label} {scores[label]:.2f}' for label in theirs)}."
    )


def _columns_of_table(cell: ResolvedCell) -> list[Column]:
    table = experiments.load(cell.spec.experiment.table or "")
    return table.scales[cell.spec.scale].columns or table.columns


def _commit(source: Source | None) -> str:
    if source is None:
        return "source not recorded"
    return f"{(source.commit or 'unknown')[:10]}{', changed' if source.dirty else ''}"


def _shown(cell: ResolvedCell) -> list[tuple[RunConfig, RunResult]]:
    """Return the runs of a curve or of a set of bars, with their results. Bars need a spectrum of every run."""
    if cell.spec.experiment.kind != "spectrum":
        return loss_curves.shown(cell)
    results = cell.results
    there = len(results) == len(cell.final_runs) and all(spectrum_path(config).is_file() for config, _ in results)
    return results if there else []


def _absent(cell: ResolvedCell) -> str:
    """Return why a curve or bars are not drawn."""
    there, wanted = len(cell.results), len(cell.final_runs)
    return NOT_RUN if not there else f"{there} of {wanted} seeds" if there < wanted else "cannot be drawn"


def _spectra(axes: Axes, panel: list[ResolvedCell], every_seed: bool) -> None:
    width = 0.8 / len(panel)
    for i, cell in enumerate(panel):
        spectra = [spectrum_of(config) for config, _ in _shown(cell)]
        if not spectra:
            continue
        counts = np.array([[s.kinds[kind][cell.spec.column.metric] for kind in MODULES] for s in spectra if s])
        places = np.arange(len(MODULES)) + (i - (len(panel) - 1) / 2) * width
        axes.bar(places, counts.mean(0), width, label=cell.spec.label)
        if len(counts) > 1:
            apart = (counts.mean(0) - counts.min(0), counts.max(0) - counts.mean(0))
            axes.errorbar(places, counts.mean(0), apart, fmt="none", ecolor="k", elinewidth=0.8, capsize=1.5)
        for seed in counts if every_seed else ():
            axes.plot(places, seed, ".", color="k", ms=3)
    axes.set_xticks(range(len(MODULES)), [kind.removesuffix("_proj") for kind in MODULES])
    axes.set(ylabel="singular values of delta W above 0.1")


def spectrum_of(config: RunConfig) -> Spectrum | None:
    """Return the spectrum of a run; None if it was not measured. Raises DamagedFileError if it is damaged or another's."""
    path = spectrum_path(config)
    return read_spectrum(path) if path.is_file() else None


def output_folder(scale: str, kind: str) -> Path:
    """Return results/tables or results/figures; at scale smoke, the folder of that name under outputs/smoke/."""
    return ROOT / ("outputs/smoke" if scale == "smoke" else "results") / kind
