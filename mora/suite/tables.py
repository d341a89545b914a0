"""A table from result files, as Markdown, LaTeX (booktabs) and CSV. Nothing is typed in, and no git is asked."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable
from pathlib import Path

from mora.analysis.counts import trainable as trainable_parameters
from mora.config.run_id import format_lr, run_id
from mora.results import Metrics
from mora.train.log import replace_file

from . import latex
from .cells import Cell, CellRuns
from .experiment import Candidate, Experiment, paper_tables

NOT_RUN = "not run"
DIGITS = {"percent": 1, "perplexity": 2}  # as the paper prints them
CSV_COLUMNS = [
    *("method", "r", "operator", "column", "task", "setting", "lr"),
    *("paper", "mean", "sd", "n", "n_planned", "difference", "noise", "threshold", "trainable", "seeds", "runs"),
]
CAPTIONS = {"smollm2_135m": "SmolLM2-135M-Instruct, dequantised from Q4_1"}
STACK = ("torch", "transformers", "peft")
MARKS = {"beyond": "*", "within": "~", None: "?"}
SIGNS = {"+-": "$\\pm$", "-": "$-$", "|": "$\\vert$", "*": "$^{*}$", "~": "$^{\\sim}$", "?": "$^{?}$"}  # of LaTeX
LEGEND = (
    "Each cell: paper | ours, mean +- sd (n seeds, or n of m) | difference. `*` the difference exceeds the noise, `~` it "
    "does not, `?` the noise is not known. Noise: over seeds, the 95 % prediction interval of one more run; with one seed, "
    "1.96 sqrt(2) standard errors over the evaluation's documents."
)


def render(name: str, experiment: Experiment, rows: list[list[CellRuns]], scale: str, folder: Path) -> Path:
    """Writes `folder/<name>-<scale>.md`, `.tex` and `.csv`; returns the Markdown's path."""
    cells = [[runs.cell if runs.spec.exists else None for runs in row] for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{scale}.md"
    replace_file(path, _markdown(experiment, rows, cells, scale))
    replace_file(path.with_suffix(".tex"), _latex(experiment, rows, cells, scale))
    replace_file(path.with_suffix(".csv"), _csv(rows, cells))
    return path


def _markdown(experiment: Experiment, rows: list[list[CellRuns]], cells: list[list[Cell | None]], scale: str) -> str:
    lines = [f"# {experiment.title}", "", f"Scale {scale}, {models(rows)}. {LEGEND}", ""]
    lines.append("| method | trainable | " + " | ".join(runs.spec.column.name for runs in rows[0]) + " |")
    lines.append("|" + "---|" * (2 + len(rows[0])))
    for row, found in zip(rows, cells, strict=True):
        shown = [_words(c, DIGITS[experiment.unit]).replace("|", "\\|") for c in found]
        lines.append(f"| {row[0].spec.label} | {trainable(row)} | " + " | ".join(shown) + " |")
    for note in [*notes(experiment), *_stacks(rows)]:
        lines += ["", note]
    lines += _score_lines(rows)
    lines += _search_lines(experiment, rows)
    return "\n".join(lines) + "\n"


def _stacks(rows: list[list[CellRuns]]) -> list[str]:
    """The versions that the cells were made with, more than one line where they differ."""
    found = [result.packages for row in rows for runs in row for _, result in runs.results]
    shown = (", ".join(f"{name} {made[name]}" for name in STACK if name in made) for made in found)
    return [f"Made with {text}." for text in dict.fromkeys(shown) if text]


def models(rows: Iterable[Iterable[CellRuns]]) -> str:
    names = dict.fromkeys(runs.spec.config.model.name for row in rows for runs in row)
    return ", ".join(CAPTIONS.get(name, name) for name in names)


def notes(experiment: Experiment) -> list[str]:
    """The paper's inconsistencies with itself that concern this experiment, shown and not repaired."""
    found = paper_tables()["inconsistencies"]
    chosen = [next(text for text in found if text.startswith(start)) for start in experiment.notes]
    return [f"The paper with itself: {text}" for text in chosen]


def trainable(row: list[CellRuns]) -> str:
    """The counts that the row's runs report, or what their configuration comes to, one a model or rank."""
    counts = []
    for runs in row:
        measured = [result.parameters.trainable for _, result in runs.results]
        try:
            counts += [f"{count:,}" for count in measured or [trainable_parameters(runs.spec.config)]]
        except ValueError:  # a ConfigError too: a model or method that cannot be counted without its weights
            counts.append("unknown")
    return " / ".join(dict.fromkeys(counts))


def _words(found: Cell | None, digits: int) -> str:
    """paper | mean +- sd (n) | difference and its mark."""
    if found is None:
        return "-"
    printed = _printed(found.paper, digits)
    if found.mean is None or found.values is None:
        return f"{printed} | {NOT_RUN}"
    count = str(n) if (n := len(found.values)) >= found.seeds else f"{n} of {found.seeds}"
    if math.isinf(found.mean):
        return f"{printed} | diverged ({count})"
    spread = f" +- {found.sd:.{digits}f}" if found.sd is not None else ""
    ours = f"{found.mean:.{digits}f}{spread} ({count})"
    if found.difference is None:
        return f"{printed} | {ours}"
    return f"{printed} | {ours} | {found.difference:+.{digits}f}{MARKS[found.noise]}"


def _printed(value: float | None, digits: int) -> str:
    """The paper's number as it stands there; 100 % has no decimals."""
    if value is None:
        return "-"
    return "100" if value == 100 else f"{value:.{digits}f}"


def _score_lines(rows: list[list[CellRuns]]) -> list[str]:
    """Every final run's score with its standard error and the floor, where the column shows a task's score at the end."""
    lines, unit = [], rows[0][0].spec.experiment.unit
    for runs in (runs for row in rows for runs in row):
        column = runs.spec.column
        for config, result in runs.results:
            found = runs.metrics(config, result)
            metric = found.get(column.metric)
            if metric is not None and metric.documents is not None and column.step is None:
                lr = "-" if config.lr is None else format_lr(config.lr)
                shown = _score(column.metric, found, unit)
                lines.append(f"| {column.name} | {runs.spec.label} | {lr} | {config.seed} | {shown} |")
    if not lines:
        return []
    head = [
        "",
        f"Every run's score ({unit}) with its standard error over the evaluation's documents. Floor: the best constant "
        "answer to multiple choice; `=`: the score is within 1.96 standard errors of it or below, which shows no skill.",
        "",
        "| column | method | rate | seed | validation loss | documents | score | floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *lines]


def _score(name: str, metrics: Metrics, unit: str) -> str:
    """validation loss | documents | score +- its error | floor and its mark."""
    factor, digits, metric = (100 if unit == "percent" else 1), DIGITS[unit], metrics[name]
    score, error = factor * metric.value, factor * (math.nan if metric.stderr is None else metric.stderr)
    at_it = metric.floor is not None and score - 1.96 * error <= 100 * metric.floor
    mark = "-" if metric.floor is None else f"{100 * metric.floor:.1f}{' =' if at_it else ''}"
    loss = f"{metrics['validation_loss'].value:.4f}" if "validation_loss" in metrics else "-"
    shown = f"{score:.{digits}f} +- {error:.{digits}f}{_beside(name.removesuffix('.score'), metrics)}"
    return f"{loss} | {metric.documents:,.0f} | {shown} | {mark}"


def _beside(task: str, metrics: Metrics) -> str:
    """What else was found: how many texts hold an answer, the score of those, how likely the set's gold answers are."""
    parts, gold = [], metrics.get(f"{task.removesuffix('500')}_gold.score")
    if answered := metrics.get(f"{task}.answered"):
        right = metrics.get(f"{task}.score_if_answered")
        parts.append(f"{100 * answered.value:.1f} % answered, {100 * right.value if right else 0:.1f} % of these right")
    if gold:
        parts.append(f"gold answers {gold.value:.3f} +- {gold.stderr or math.nan:.3f} nats a token")
    return f" ({'; '.join(parts)})" if parts else ""


def _search_lines(experiment: Experiment, rows: list[list[CellRuns]]) -> list[str]:
    """Every candidate of every search that was begun, the losing ones too: learning-rate curves. Of usable results alone."""
    lines: dict[str, None] = {}
    untouched: set[str] = set()
    for runs in (runs for row in rows for runs in row):
        shown, ran = [], False
        mark = " (chosen, at the edge of the grid)" if runs.chose_edge else " (chosen)"
        for candidate, score in runs.scores:
            value = NOT_RUN
            if score is not None:
                value, ran = score if isinstance(score, str) else f"{score:.4g}", True
            shown.append(f"{_candidate(candidate)}: {value}{mark if candidate == runs.best else ''}")
        if shown:
            where = f"{runs.spec.label}, {' '.join([runs.spec.column.task, *runs.spec.column.overrides])}"
            if ran:
                lines[f"- {where}: {', '.join(shown)}"] = None
            else:
                untouched.add(where)
    head = f"Searches, each rate with its {experiment.selection} at the last step of the search (lower is better):"
    rest = ["", f"Searches of which nothing was run: {len(untouched)}."] if untouched else []
    return (["", head, "", *lines] if lines else []) + rest


def _candidate(candidate: Candidate) -> str:
    """`ratio=16.0 1e-4`: what it overrides, without the path, and its rate."""
    words = [f"{key.rpartition('.')[2]}={value}" for key, _, value in (o.partition("=") for o in candidate.overrides)]
    return " ".join([*words, format_lr(candidate.lr or 0)])


def _latex(experiment: Experiment, rows: list[list[CellRuns]], cells: list[list[Cell | None]], scale: str) -> str:
    digits = DIGITS[experiment.unit]
    lines = [
        [latex.escape(row[0].spec.label), trainable(row), *(_latex_cell(c, digits) for c in found)]
        for row, found in zip(rows, cells, strict=True)
    ]
    head = ["method", "trainable", *(latex.escape(runs.spec.column.name) for runs in rows[0])]
    above = [f"{experiment.title}; scale {scale}, {models(rows)}.", LEGEND, *notes(experiment)]
    return latex.table(above, f"lr{'c' * len(rows[0])}", head, lines)


def _latex_cell(found: Cell | None, digits: int) -> str:
    """What `_words` says, with LaTeX's signs."""
    return re.sub(r"\+-|[-|*~?]", lambda sign: SIGNS[sign[0]], _words(found, digits))


def _csv(rows: list[list[CellRuns]], cells: list[list[Cell | None]]) -> str:
    """One line a cell; fields are empty where there is nothing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row, found in zip(rows, cells, strict=True):
        for runs, c in zip(row, found, strict=True):
            if c is not None:
                writer.writerow(_csv_line(runs, c))
    return out.getvalue()


def _csv_line(runs: CellRuns, c: Cell) -> list[str]:
    spec, best = runs.spec, runs.best
    measured = c.values is not None

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    return [
        spec.row.method,
        "" if spec.config.r is None else str(spec.config.r),
        spec.row.operator or "",
        spec.column.name,
        spec.column.task,
        " ".join(best.overrides) if best else "",
        format_lr(best.lr) if best and best.lr else "",
        "" if c.paper is None else f"{c.paper:g}",
        number(c.mean),
        number(c.sd),
        str(len(c.values)) if c.values else "",
        str(c.seeds),
        number(c.difference),
        c.noise or "",
        number(c.threshold if measured else None),
        trainable([runs]).replace(",", ""),
        " ".join(f"{v:.4f}" for v in c.values or ()),
        " ".join(run_id(run) for run, _ in runs.results),
    ]
