"""A table from result files, as Markdown, LaTeX (booktabs) and CSV. No number is typed in, and git is not asked."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from mora.config.run_id import format_lr, run_id
from mora.evaluate.metrics import companion_task
from mora.io import replace_file
from mora.planner.gpus import GIB
from mora.results import Metrics

from . import latex
from .cell_specs import Candidate
from .cells import CellNumbers, ResolvedCell, score_at_floor, steps_to
from .doubts import doubted
from .experiments import Column, Experiment, Row, paper_tables
from .selection import Choice, Score

NOT_RUN = "not run"
BASELINE = "lora"  # the method over which an effect is computed
MATRIX = "r_hat/d, ignored"
DIGITS = {"percent": 1, "perplexity": 2}  # as in the paper
CSV_FIELDS = [
    "method", "r", "operator", "column", "task", "setting", "lr", "paper", "mean", "sd", "n", "n_planned", "effect_paper",
    "effect", "floor", "trainable", "r_hat_over_d", "inputs_ignored", "ms_a_step", "gib", "reached", "seeds", "runs",
]  # fmt: skip
CAPTIONS = {"smollm2_135m": "SmolLM2-135M-Instruct, dequantised from Q4_1"}
STACK = ("torch", "transformers", "peft")
SIGNS = {"+-": "$\\pm$", "-": "$-$", "|": "$\\vert$", "~": "$\\sim$", ">": "$>$", "%": "\\%"}  # in LaTeX
LEGEND = (
    "Each cell: paper | ours, mean +- sd (n seeds, or n of m) | the method's effect over LoRA at the same r: the paper's; "
    "ours, over the seeds that both have. Italics (grey in LaTeX): at most three standard errors above the score of a model "
    "that knows nothing. "
    f"{MATRIX}: for MoRA, the side of M over the model's width, and the share of all inputs that never change an output. "
    "ms and GiB: one number per task or rank, in the order of the columns, `-` without a run. ms: time per step, with `~` "
    "if several runs shared the GPU. GiB: peak allocated memory of training, with `~` of the "
    "whole run, scoring included, if training's own was not recorded: such peaks do not compare methods."
)


class Entry(NamedTuple):
    """A cell, and the method's effect over LoRA at the same r, the paper's and ours, if both rows have a number."""

    numbers: CellNumbers
    effect_paper: float | None
    effect: float | None
    at_floor: bool


def render(name: str, experiment: Experiment, rows: list[list[ResolvedCell]], scale: str, folder: Path) -> Path:
    """Write `folder/<name>-<scale>.md`, `.tex` and `.csv`; return the path of the Markdown."""
    entries = [[entry_of(rows, i, j) for j in range(len(row))] for i, row in enumerate(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{scale}.md"
    replace_file(path, _markdown(experiment, rows, entries, scale))
    replace_file(path.with_suffix(".tex"), _latex(experiment, rows, entries, scale))
    replace_file(path.with_suffix(".csv"), _csv(rows, entries))
    return path


def entry_of(rows: list[list[ResolvedCell]], i: int, j: int) -> Entry | None:
    """Return the cell in row i, column j with its effect; None if the experiment leaves it out."""
    cell = rows[i][j]
    if not cell.spec.exists:
        return None
    r = cell.spec.row.r
    others = (row[j] for row in rows if row[j].spec.exists and _is_baseline(row[j].spec.row, r))
    baseline = next(others, None) if r is not None and cell.spec.row.method != BASELINE else None
    if baseline is None:
        return Entry(cell.numbers, None, None, cell.at_floor)
    papers = (cell.numbers.paper, baseline.numbers.paper)
    effect_paper = None if papers[0] is None or papers[1] is None else papers[0] - papers[1]
    return Entry(cell.numbers, effect_paper, _effect(cell, baseline), cell.at_floor)


def _is_baseline(row: Row, r: int | None) -> bool:
    return row.method == BASELINE and row.r == r and not row.settings


def _effect(cell: ResolvedCell, baseline: ResolvedCell) -> float | None:
    """Return the mean difference over the seeds that both have; None if they share none, or if a run diverged."""
    differences = [value - baseline.by_seed[seed] for seed, value in cell.by_seed.items() if seed in baseline.by_seed]
    return statistics.fmean(differences) if differences and all(map(math.isfinite, differences)) else None


def _markdown(
    experiment: Experiment, rows: list[list[ResolvedCell]], entries: list[list[Entry | None]], scale: str
) -> str:
    lines = [f"# {experiment.title}", "", f"Scale {scale}, {models(rows)}. {LEGEND}", ""]
    head = heading(experiment, rows)
    lines.append(f"| {' | '.join(head)} |")
    lines.append("|" + "---|" * len(head))
    for row, in_row in zip(rows, entries, strict=True):
        texts = [_italic(_entry_text(c, DIGITS[experiment.unit]).replace("|", "\\|"), c) for c in in_row]
        fields = [row[0].spec.label, trainable(row), *texts, *further_columns(experiment, row)]
        lines.append(f"| {' | '.join(fields)} |")
    for note in [*notes(experiment), *_doubts(rows), *_stacks(rows)]:
        lines += ["", note]
    lines += _score_lines(rows)
    lines += _search_lines(experiment, rows)
    return "\n".join(lines) + "\n"


def heading(experiment: Experiment, rows: list[list[ResolvedCell]]) -> list[str]:
    """Return the names of the columns. Those of `further_columns` are last."""
    reached = [f"step of {experiment.reach.at_least:.0%}"] if experiment.reach else []
    return ["method", "trainable", *(cell.spec.heading for cell in rows[0]), MATRIX, *reached, "ms", "GiB"]


def further_columns(experiment: Experiment, row: list[ResolvedCell]) -> list[str]:
    """Return what stands beside the scores: M's size, steps to a level, and per task or rank the time and the memory."""
    reached = [_reached(experiment, row[0]) or "-"] if experiment.reach else []
    return [_matrix_sizes(row), *reached, _by_task(row, _ms), _by_task(row, _gib)]


def _by_task(row: list[ResolvedCell], text_of: Callable[[ResolvedCell], str]) -> str:
    """Return one number per task or rank, in the order of the columns; a single dash if there is none."""
    texts = {tuple(cell.spec.base): text_of(cell) or "-" for cell in row if cell.spec.exists}
    return " / ".join(texts.values()) if set(texts.values()) - {"-"} else "-"


def _reached(experiment: Experiment, cell: ResolvedCell) -> str:
    reach, steps = experiment.reach, []
    for _, result in cell.results if reach else []:
        step = steps_to(result.metrics, reach.metric, reach.at_least) if reach else None
        steps.append(f"> {max(result.metrics)}" if step is None else f"{step:.0f}")
    return ", ".join(steps)


def _ms(cell: ResolvedCell) -> str:
    """Return the median step time of those runs that had a GPU to themselves; if none had, that of all, after `~`."""
    timed = [(result, 1e3 * result.speed["step_s"]) for _, result in cell.results if result.speed]
    alone = [ms for result, ms in timed if result.hardware.get("runs_side_by_side") == 1]
    if alone:
        return f"{statistics.median(alone):.0f}"
    return f"~{statistics.median(ms for _, ms in timed):.0f}" if timed else ""


def _gib(cell: ResolvedCell) -> str:
    """Return the peak memory of training; if a run has not recorded it, the peak of whole runs, after `~`."""
    measured = [result for _, result in cell.results if result.peak_memory_bytes]
    training = [peak for result in measured if (peak := result.train_peak_memory_bytes)]
    if training and len(training) == len(measured):
        return f"{max(training) / GIB:.1f}"
    return f"~{max(result.peak_memory_bytes or 0 for result in measured) / GIB:.1f}" if measured else ""


def _italic(text: str, entry: Entry | None) -> str:
    return f"*{text}*" if entry is not None and entry.at_floor else text


def _doubts(rows: list[list[ResolvedCell]]) -> list[str]:
    found = doubted(cell for row in rows for cell in row)
    return [f"In doubt: {name}: {'; '.join(why)}." for name, why in found.items()]


def _stacks(rows: list[list[ResolvedCell]]) -> list[str]:
    """Return the package versions with which the results were made, one line per set of versions."""
    packages = [result.packages for row in rows for cell in row for _, result in cell.results]
    shown = (", ".join(f"{name} {made[name]}" for name in STACK if name in made) for made in packages)
    return [f"Made with {text}." for text in dict.fromkeys(shown) if text]


def models(rows: Iterable[Iterable[ResolvedCell]]) -> str:
    names = dict.fromkeys(cell.spec.config.model.name for row in rows for cell in row)
    return ", ".join(CAPTIONS.get(name, name) for name in names)


def notes(experiment: Experiment) -> list[str]:
    """Return the paper's inconsistencies that concern this experiment. They are shown, not corrected."""
    inconsistencies = paper_tables()["inconsistencies"]
    chosen = [next(text for text in inconsistencies if text.startswith(start)) for start in experiment.notes]
    return [f"Inconsistency within the paper: {text}" for text in chosen]


def trainable(row: list[ResolvedCell]) -> str:
    """Return the row's parameter counts, one per model or rank."""
    counts = [f"{count:,}" for cell in row for count in cell.trainable] or ["unknown"]
    return " / ".join(dict.fromkeys(counts))


def _matrix_sizes(row: list[ResolvedCell]) -> str:
    """Return, per model or rank, r_hat over the model's width and the share of ignored inputs; a dash without M."""
    squares = [f"{m.r_hat / m.width:.3f}, {m.ignored:.0%}" for cell in row if (m := cell.square)]
    return " / ".join(dict.fromkeys(squares)) or "-"


def _entry_text(entry: Entry | None, digits: int) -> str:
    """Return `paper | mean +- sd (n) | effect over LoRA: the paper's; ours`."""
    if entry is None:
        return "-"
    numbers, printed = entry.numbers, _printed(entry.numbers.paper, digits)
    if numbers.mean is None or numbers.values is None:
        return f"{printed} | {NOT_RUN}"
    count = str(n) if (n := len(numbers.values)) >= numbers.seeds else f"{n} of {numbers.seeds}"
    if math.isinf(numbers.mean):
        return f"{printed} | diverged ({count})"
    spread = f" +- {numbers.sd:.{digits}f}" if numbers.sd is not None else ""
    ours = f"{printed} | {numbers.mean:.{digits}f}{spread} ({count})"
    if entry.effect is None:
        return ours
    of_paper = "-" if entry.effect_paper is None else f"{entry.effect_paper:+.{digits}f}"
    return f"{ours} | {of_paper}; {entry.effect:+.{digits}f}"


def _printed(value: float | None, digits: int) -> str:
    """Return the paper's number as the paper prints it; 100% has no decimals."""
    if value is None:
        return "-"
    return "100" if value == 100 else f"{value:.{digits}f}"


def _score_lines(rows: list[list[ResolvedCell]]) -> list[str]:
    """Return one line per final run, with score, standard error and floor, for columns that show the last step's score."""
    lines, unit = [], rows[0][0].spec.experiment.unit
    for cell in (cell for row in rows for cell in row):
        column = cell.spec.column
        for config, result in cell.results:
            metrics = cell.metrics(config, result)
            metric = metrics.get(column.metric)
            if metric is not None and metric.documents is not None and column.step is None:
                lr = "-" if config.lr is None else format_lr(config.lr)
                shown = _score(column, metrics, unit)
                lines.append(f"| {cell.spec.heading} | {cell.spec.label} | {lr} | {config.seed} | {shown} |")
    if not lines:
        return []
    head = [
        "",
        f"Every run's score ({unit}) with its standard error over the evaluation's documents. Floor: the score of "
        "a model that knows nothing (for multiple choice, the best constant answer). `=`: at most three standard errors "
        "above it.",
        "",
        "| column | method | lr | seed | validation loss | documents | score | floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *lines]


def _score(column: Column, metrics: Metrics, unit: str) -> str:
    """Return `validation loss | documents | score +- its error | floor and its mark`."""
    factor, digits, metric = (100 if unit == "percent" else 1), DIGITS[unit], metrics[column.metric]
    score, error = factor * metric.value, factor * (math.nan if metric.stderr is None else metric.stderr)
    mark = "-" if metric.floor is None else f"{100 * metric.floor:.1f}{' =' if score_at_floor(metric) else ''}"
    loss = f"{metrics['validation_loss'].value:.4f}" if "validation_loss" in metrics else "-"
    shown = f"{score:.{digits}f} +- {error:.{digits}f}{_score_notes(column.scored_task, metrics)}"
    return f"{loss} | {metric.documents:,.0f} | {shown} | {mark}"


def _score_notes(task: str, metrics: Metrics) -> str:
    """Return the share of texts with an answer, the score over those, and the likelihood of the set's gold answers."""
    parts, gold = [], metrics.get(f"{companion_task(task)}.score")
    if answered := metrics.get(f"{task}.answered"):
        right = metrics.get(f"{task}.score_if_answered")
        parts.append(f"{100 * answered.value:.1f}% answered, {100 * right.value if right else 0:.1f}% of these right")
    if gold:
        parts.append(f"gold answers {gold.value:.3f} +- {gold.stderr or math.nan:.3f} nats per token")
    return f" ({'; '.join(parts)})" if parts else ""


def _search_lines(experiment: Experiment, rows: list[list[ResolvedCell]]) -> list[str]:
    """Return one line per search with a usable result. It has every candidate, including those that lost."""
    lines: dict[str, None] = {}
    untouched: set[str] = set()
    for cell in (cell.of_search for row in rows for cell in row):
        shown, ran = [], False
        for candidate, score in cell.choice.scores:
            value = NOT_RUN
            if score is not None:
                value, ran = _loss(score), True
            again = cell.choice.second_seed.get(candidate)
            value += "" if again is None else f" and {_loss(again)}"
            value += "" if candidate in cell.spec.search_space else " (added: the best was at the edge)"
            shown.append(f"{_candidate(candidate)}: {value}{_mark(cell.choice) if candidate == cell.selected else ''}")
        shown += [f"{_candidate(c)}: {_loss(score)} (of another search)" for c, score in cell.choice.on_record]
        if shown:
            where = f"{cell.spec.label}, {' '.join([cell.spec.column.task, *cell.spec.column.overrides])}"
            if ran:
                lines[f"- {where}: {', '.join(shown)}"] = None
            else:
                untouched.add(where)
    head = f"Searches: each learning rate with its {experiment.selection} at the last step of the search (lower is better):"
    rest = ["", f"Searches not run: {len(untouched)}."] if untouched else []
    return (["", head, "", *lines] if lines else []) + rest


def _loss(score: Score) -> str:
    """Return the number of a search run, or a text that says why it has none."""
    return f"{score:.4g}" if isinstance(score, float | int) else str(score)


def _mark(choice: Choice) -> str:
    marks = ["chosen", *["at the edge of the grid"] * choice.at_edge, *["a second seed reverses it"] * choice.reversed]
    return f" ({', '.join(marks)})"


def _candidate(candidate: Candidate) -> str:
    """Return a candidate's overrides, without their paths, and its learning rate, such as `ratio=16.0 1e-4`."""
    words = [f"{key.rpartition('.')[2]}={value}" for key, _, value in (o.partition("=") for o in candidate.overrides)]
    return " ".join([*words, format_lr(candidate.lr or 0)])


def _latex(
    experiment: Experiment, rows: list[list[ResolvedCell]], entries: list[list[Entry | None]], scale: str
) -> str:
    digits = DIGITS[experiment.unit]
    lines = [
        [
            *(latex.escape(row[0].spec.label), trainable(row)),
            *(_latex_cell(c, digits) for c in in_row),
            *(_signs(text) for text in further_columns(experiment, row)),
        ]
        for row, in_row in zip(rows, entries, strict=True)
    ]
    head = [latex.escape(text) for text in heading(experiment, rows)]
    above = [f"{experiment.title}; scale {scale}, {models(rows)}.", LEGEND, *notes(experiment), *_doubts(rows)]
    return latex.table(above, f"lr{'c' * (len(head) - 2)}", head, lines, _stacks(rows))


def _latex_cell(entry: Entry | None, digits: int) -> str:
    """Return the text of `_entry_text` in LaTeX."""
    text = _signs(_entry_text(entry, digits))
    return f"\\textcolor{{gray}}{{{text}}}" if entry is not None and entry.at_floor else text


def _signs(text: str) -> str:
    return re.sub(r"\+-|[-|~>%]", lambda sign: SIGNS[sign[0]], text)


def _csv(rows: list[list[ResolvedCell]], entries: list[list[Entry | None]]) -> str:
    """Return one line per cell; a field without a value is empty."""
    lines = [
        _csv_fields(cell, entry)
        for row, in_row in zip(rows, entries, strict=True)
        for cell, entry in zip(row, in_row, strict=True)
        if entry is not None
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _csv_fields(cell: ResolvedCell, entry: Entry) -> dict[str, str]:
    spec, best, numbers, square = cell.spec, cell.selected, entry.numbers, cell.square

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    return {
        "method": spec.row.method,
        "r": "" if spec.config.r is None else str(spec.config.r),
        "operator": spec.row.operator or "",
        "column": spec.column.name,
        "task": spec.column.task,
        "setting": " ".join([*spec.row.settings, *(best.overrides if best else ())]),
        "lr": format_lr(best.lr) if best and best.lr else "",
        "paper": "" if numbers.paper is None else f"{numbers.paper:g}",
        "mean": number(numbers.mean),
        "sd": number(numbers.sd),
        "n": str(len(numbers.values)) if numbers.values else "",
        "n_planned": str(numbers.seeds),
        "effect_paper": number(entry.effect_paper),
        "effect": number(entry.effect),
        "floor": "at" if entry.at_floor else "" if cell.floor_tested else "not tested",
        "trainable": trainable([cell]).replace(",", ""),
        "r_hat_over_d": number(square.r_hat / square.width if square else None),
        "inputs_ignored": number(square.ignored if square else None),
        "ms_a_step": _ms(cell),
        "gib": _gib(cell),
        "reached": _reached(spec.experiment, cell),
        "seeds": " ".join(f"{value:.4f}" for value in numbers.values or ()),
        "runs": " ".join(run_id(config) for config, _ in cell.results),
    }
