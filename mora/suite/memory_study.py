"""The memory study: steps until pairs are known, against the bits that a trainable parameter has to store.

It is not about a run's memory on a GPU, which is in `mora/planner/memory.py`.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mora.config import RunConfig
from mora.config.data_schema import UuidData
from mora.config.run_id import format_lr, run_id
from mora.io import replace_file
from mora.planner.counts import operator_of, square, trainable
from mora.results import Metrics

from .cell_specs import CellSpec
from .cells import ResolvedCell, steps_to
from .experiments import Experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

BITS_A_PAIR = 122  # the random bits of a version-4 UUID
KNOWN = 0.99  # the share of the tokens of all values, teacher-forced, at which the pairs are known
MARKERS = {"sharing": "o", "decouple": "s", "rotation": "D", "LoRA, A frozen": "P"}
APART = 1.04  # each kind is drawn to the right of the one before by this factor, so that no dot is hidden
PLAIN: Any = {"fc": "white", "ec": "none", "pad": 0.5}  # the box that a rank is written on
PLACE = f"{next(iter(MARKERS))} stands at its value, others just right of it"
CAPTION = (
    "Known: 99% of the values' tokens are predicted, given all tokens before them; interpolated linearly between "
    "measurements 50 steps apart. `>` n: not within the n steps of the run; nats per value, the mean over all "
    "measurements, then say more. Bits: 122 per pair, divided by the trainable parameters; in the picture "
    f"{PLACE}. Accuracy: share of correct digits, generated at the end."
)
CSV_COLUMNS = [
    *(
        "model",
        "column",
        "pairs",
        "method",
        "r",
        "operator",
        "settings",
        "trainable",
        "bits_a_parameter",
        "lr",
        "edge",
        "seed",
    ),
    *("steps_to_99", "last_step", "mean_nats", "accuracy", "run"),
]


@dataclass(frozen=True)
class MemoryRun:
    """The measurements of one run, by step. There are none if the run diverged."""

    config: RunConfig
    metrics: dict[int, Metrics]

    @cached_property
    def steps(self) -> float | None:
        """The step at which the share of known tokens reached KNOWN; None if the run ended before."""
        return steps_to(self.metrics, "value_token_acc", KNOWN)

    @property
    def mean_nats(self) -> float:
        """The nats per value, as the mean over all measurements."""
        nats = [values["value_nll"].value for values in self.metrics.values() if "value_nll" in values]
        return statistics.fmean(nats) if nats else math.inf

    @property
    def accuracy(self) -> float:
        """The share of correct digits at the end, in percent."""
        last = self.metrics[max(self.metrics)].get("uuid_char_acc") if self.metrics else None
        return 100 * last.value if last else 0.0

    @property
    def shown(self) -> str:
        return f"> {self.config.last_step}" if self.steps is None else f"{self.steps:.0f}"


@dataclass(frozen=True)
class Arm:
    """A cell, and those of its runs that were made, by seed."""

    cell: ResolvedCell

    @property
    def spec(self) -> CellSpec:
        return self.cell.spec

    @cached_property
    def runs(self) -> dict[int, MemoryRun]:
        made = [(config, result.metrics if result.status == "done" else {}) for config, result in self.cell.results]
        return {config.seed: MemoryRun(config, metrics) for config, metrics in made}

    @cached_property
    def trainable(self) -> int:
        return trainable(self.spec.config)

    @property
    def pairs(self) -> int:
        data = self.spec.config.task.data
        assert isinstance(data, UuidData)
        return data.pairs

    @property
    def bits(self) -> float:
        """The bits that each trainable parameter has to store."""
        return BITS_A_PAIR * self.pairs / self.trainable

    @property
    def kind(self) -> str:
        """MoRA's operator; for other methods "LoRA", "LoRA, A frozen" or "FFT"."""
        config = self.spec.config
        if operator := operator_of(config):
            return operator
        if config.method.name == "lora":
            return "LoRA, A frozen" if getattr(config.method.adapter, "freeze_a", False) else "LoRA"
        return config.method.name.upper()

    @property
    def side(self) -> int | None:
        """The side of M in a module of the model's width; None without M."""
        matrix = square(self.spec.config)
        return matrix and matrix.r_hat


class Dot(NamedTuple):
    """The x of a dot, and the y of its top or of the top of its arrow."""

    x: float
    top: float


def arms(rows: list[list[ResolvedCell]]) -> list[Arm]:
    """Return every cell that exists, column by column."""
    return [Arm(cell) for column in zip(*rows, strict=True) for cell in column if cell.spec.exists]


def partner(arm: Arm, among: list[Arm]) -> Arm | None:
    """Return the LoRA of the same column whose parameter count is nearest; None for LoRA and full fine-tuning."""
    if arm.kind not in MARKERS:
        return None
    same = [a for a in among if a.kind == "LoRA" and a.spec.column == arm.spec.column]
    return min(same, key=lambda a: abs(a.trainable - arm.trainable), default=None)


def ratio(lora: MemoryRun, other: MemoryRun) -> tuple[float, int] | None:
    """Return LoRA's steps / the other's steps, and what kind of bound that is; None if neither reached KNOWN.

    The kind is 0 for the ratio itself, 1 for a lower bound (LoRA did not reach KNOWN) and -1 for an upper bound.
    """
    if lora.steps is None and other.steps is None:
        return None
    steps = [o.steps or float(o.config.last_step) for o in (lora, other)]
    return steps[0] / steps[1], (lora.steps is None) - (other.steps is None)


def render(name: str, experiment: Experiment, rows: list[list[ResolvedCell]], scale: str, folder: Path) -> Path | None:
    """Write `folder/<name>-<scale>.svg`, `.md` and `.csv`; return the picture's path, or None if nothing was run."""
    all_arms = arms(rows)
    if not any(arm.runs for arm in all_arms):
        return None
    from .report.style import saved  # takes a second to import, which a plan need not wait for

    path = folder / f"{name}-{scale}.svg"
    figure, undecided = drawn(experiment, all_arms)
    saved(figure, path)
    replace_file(path.with_suffix(".md"), _markdown(path.name, experiment, all_arms, scale, undecided))
    replace_file(path.with_suffix(".csv"), _csv(all_arms))
    return path


def drawn(experiment: Experiment, arms: list[Arm], width: float = 8) -> tuple[Figure, list[str]]:
    """Draw the figure, `width` inches wide; for the caption, also return the arms of which no ratio is known."""
    from matplotlib import pyplot as plt  # takes a second to import, which a plan need not wait for
    from matplotlib.lines import Line2D

    plt.switch_backend("Agg")
    figure, ax = plt.subplots(figsize=(width, 0.625 * width), layout="constrained")
    models = list(dict.fromkeys(arm.spec.config.model.name for arm in arms))
    colours = {model: f"C{i}" for i, model in enumerate(models)}
    undecided, shown = [], set()
    dots: dict[tuple[str, str], list[Dot]] = {}  # by LoRA's rank and column
    for arm in arms:
        lora, model = partner(arm, arms), arm.spec.config.model.name
        for seed in sorted(set(arm.runs) & set(lora.runs if lora else ())):
            assert lora is not None
            value = ratio(lora.runs[seed], arm.runs[seed])
            if value is None:
                undecided.append(f"{arm.spec.label} at {arm.spec.column.name}, seed {seed}")
            else:
                dot = _dot(ax, lora, arm.kind, value, colours[model])
                dots.setdefault((f"r={lora.spec.row.r}", lora.spec.column.name), []).append(dot)
                shown |= {arm.kind, model}
    ax.axhline(1, color="grey", lw=0.8)
    _scales(ax)
    _name(ax, dots)
    other = "the other's steps" if "LoRA, A frozen" in shown else "MoRA's steps"
    ax.set(ylabel=f"LoRA's steps / {other} to 99%\n(above 1: LoRA is slower)")
    marks = [(kind, marker, "k") for kind, marker in MARKERS.items()] + [(name, "o", c) for name, c in colours.items()]
    handles: list[Any] = [Line2D([], [], ls="", marker=m, color=c, label=name) for name, m, c in marks if name in shown]
    handles.append(Line2D([], [], ls="", marker="$\\uparrow$", color="k", label="at least (down: at most)"))
    ax.legend(handles=handles, fontsize=8, frameon=False)
    ax.grid(alpha=0.3)
    ax.set_title(textwrap.fill(experiment.title, 90), fontsize=9)
    return figure, undecided


def _dot(ax: Axes, lora: Arm, kind: str, value: tuple[float, int], colour: str) -> Dot:
    """Draw a dot at LoRA's bits, right of the dots of the kinds before it, with an arrow if the value is a bound."""
    y, bound = value
    x = lora.bits * APART ** list(MARKERS).index(kind)
    ax.plot(x, y, MARKERS[kind], color=colour, alpha=0.7, ms=6)
    if bound:
        ax.annotate("", (x, y * 1.12**bound), (x, y), arrowprops={"arrowstyle": "->", "color": colour})
    return Dot(x, y * 1.12 if bound > 0 else y)


def _name(ax: Axes, dots: dict[tuple[str, str], list[Dot]]) -> None:
    """Write each rank of LoRA once above all its dots of a column, high enough to cover no other rank."""
    taken: list[Bbox] = []
    for (rank, _), group in sorted(dots.items(), key=lambda item: max(dot.top for dot in item[1])):
        x = math.exp(statistics.fmean(math.log(dot.x) for dot in group))
        top = (x, max(dot.top for dot in group))
        text = ax.annotate(rank, top, (0, 6), textcoords="offset points", ha="center", fontsize=7, bbox=PLAIN)
        while any(text.get_window_extent().overlaps(other) for other in taken):
            text.set_position((0, text.get_position()[1] + 2))
        taken.append(text.get_window_extent())


def _scales(ax: Axes) -> None:
    """Set logarithmic axes with plain numbers and room for arrows."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    ax.set(xscale="log", yscale="log", xlabel=f"bits to store per trainable parameter, of LoRA\n({PLACE})")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0.8) / 1.1, max(high, 1.25) * 1.1)
    for axis, ticks in (
        (ax.xaxis, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)),
        (ax.yaxis, (0.25, 0.5, 0.8, 1, 1.25, 1.5, 2, 4, 8)),
    ):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _markdown(picture: str, experiment: Experiment, arms: list[Arm], scale: str, undecided: list[str]) -> str:
    lines = [f"# {experiment.title}", "", f"![{experiment.title}]({picture})", ""]
    lines.append(
        f"Scale {scale}. Each dot: one seed, LoRA's steps divided by those of the other arm with about as many parameters "
        f"and the same seed. {CAPTION}"
    )
    if undecided:
        lines += ["", f"Reached by neither, so not drawn: {'; '.join(undecided)}."]
    head = [
        "column",
        "arm",
        "model",
        "side of M",
        "trainable",
        "bits",
        "lr",
        "steps to 99%",
        "nats per value",
        "accuracy",
    ]
    lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(_line(arm))} |" for arm in arms]
    return "\n".join(lines) + "\n"


def _line(arm: Arm) -> list[str]:
    spec, runs = arm.spec, [arm.runs[seed] for seed in sorted(arm.runs)]
    about = [spec.column.name, spec.label, spec.config.model.name, str(arm.side or "-")]
    about += [f"{arm.trainable:,}", f"{arm.bits:.3f}"]
    if not runs:
        return [*about, "-", "not run", "", ""]
    best = arm.cell.selected
    rate = f"{format_lr(best.lr)}{', edge' if arm.cell.choice.at_edge else ''}" if best and best.lr else "-"
    nats, accuracy = [f"{o.mean_nats:.1f}" for o in runs], [f"{o.accuracy:.1f}" for o in runs]
    return [*about, rate, ", ".join(o.shown for o in runs), ", ".join(nats), ", ".join(accuracy)]


def _csv(arms: list[Arm]) -> str:
    """Return one line per run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for arm in arms:
        for seed, o in sorted(arm.runs.items()):
            row, config = arm.spec.row, o.config
            about = [config.model.name, arm.spec.column.name, arm.pairs, row.method, row.r or "", row.operator or ""]
            about += [" ".join(row.settings), arm.trainable, f"{arm.bits:.4f}", format_lr(config.lr or 0)]
            steps = "" if o.steps is None else f"{o.steps:.1f}"
            values = [steps, config.last_step, f"{o.mean_nats:.4f}", f"{o.accuracy:.4f}", run_id(config)]
            writer.writerow([*about, arm.cell.choice.at_edge, seed, *values])
    return out.getvalue()
