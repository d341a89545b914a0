"""The page of a run: its configuration with the source of each value, its scores, and what it ran on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mora.config.run_id import documents_path, log_path, result_path, spectrum_path
from mora.config.source import ROOT
from mora.planner.gpus import GIB
from mora.results import Metric

from ..doubts import doubts
from .report_data import Run, end

PEAKS = ("peak_memory_bytes", "train_peak_memory_bytes")  # shown in GiB


class Setting(NamedTuple):
    """A value of the configuration. `source` is paper, official, ours or override, with the place."""

    name: str
    value: str
    source: str


class Score(NamedTuple):
    step: int
    name: str
    value: str
    error: str
    documents: str
    floor: str


def settings(run: Run) -> list[Setting]:
    """Return every value of the run's configuration, by its dotted name."""
    provenance = run.result.provenance
    given = {text.partition("=")[0] for text in run.overrides}
    shown = []
    for name, value in flat(run.result.config):
        known = _source(provenance, name)
        shown.append(Setting(name, value, known or ("of the command" if name in given else "")))
    return shown


def _source(provenance: dict[str, Any], name: str) -> str:
    """Return the source of the value, or of the block that it belongs to."""
    while name:
        if isinstance(source := provenance.get(name), str):
            return source
        name = name.rpartition(".")[0]
    return ""


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves with their dotted names. A list of plain values is one leaf."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from flat(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        for i, value in enumerate(values):
            yield from flat(value, f"{prefix}.{i}")
    else:
        yield prefix, ", ".join(map(str, values)) if isinstance(values, list) else str(values)


def scores(run: Run) -> list[Score]:
    """Return the scores, last step first. Earlier steps are shown if more than the held-out loss was measured there."""
    shown, last = [], max(run.result.metrics, default=0)
    for step, metrics in sorted(run.result.metrics.items(), reverse=True):
        if step == last or set(metrics) - {"validation_loss"}:
            shown += [_score(step, name, metric) for name, metric in sorted(metrics.items())]
    return shown


def _score(step: int, name: str, metric: Metric) -> Score:
    return Score(
        step,
        name,
        f"{metric.value:.6g}",
        "" if metric.stderr is None else f"{metric.stderr:.3g}",
        "" if metric.documents is None else f"{metric.documents:,}",
        "" if metric.floor is None else f"{metric.floor:.3g}",
    )


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the run's hardware, time, memory and counts, as pairs of name and text."""
    r = run.result
    source = f"{(r.source.commit or 'unknown')[:10]}, source {r.source.fingerprint}"
    lines: list[tuple[str, object]] = [
        ("status", r.status if r.reason is None else f"{r.status}: {r.reason}"),
        ("in doubt", "; ".join(doubts(r))),
        ("steps", end(run)),
        ("restarts", restarts(run)),
        ("trainable parameters", f"{r.parameters.trainable:,}"),
        ("final training loss", r.final_train_loss),
        ("wall time of the last start", None if r.wall_s is None else f"{r.wall_s:,.0f} s"),
        ("scoring", None if r.scoring_s is None else f"{r.scoring_s:,.0f} s of it"),
        ("step time", None if not r.speed or "step_s" not in r.speed else f"{1e3 * r.speed['step_s']:.0f} ms (median)"),
        (
            "tokens with a loss, a second",
            None if not r.speed or "tokens_per_s" not in r.speed else f"{r.speed['tokens_per_s']:,.0f}",
        ),
        ("peak memory", _gib(r.peak_memory_bytes)),
        ("peak memory of training", _gib(r.train_peak_memory_bytes)),
        *((f"hardware: {name.replace('_', ' ')}", v) for name, v in r.hardware.items() if name not in PEAKS),
        ("packages", ", ".join(f"{name} {version}" for name, version in r.packages.items())),
        ("commit", source + (", changed" if r.source.dirty else "")),
        ("files", ", ".join(str(path.relative_to(ROOT)) for path in _files(run) if path.is_file())),
    ]
    return [(name, str(value)) for name, value in lines if value not in (None, "")]


def _gib(peak: int | None) -> str | None:
    return f"{peak / GIB:.2f} GiB" if peak else None


def _files(run: Run) -> list[Path]:
    """Return the files from which the run's numbers can be computed again: result, log, document scores and spectrum."""
    return [path(run.config) for path in (result_path, log_path, documents_path, spectrum_path)]


def restarts(run: Run) -> str:
    """Return the number of restarts and their distance, such as `4, every 400 steps`; empty without restarts."""
    restart = run.result.config.get("method", {}).get("restart")
    if not isinstance(restart, dict) or not restart.get("every_steps"):
        return ""
    every = int(restart["every_steps"])
    return f"{max(0, (end(run) - 1) // every)}, every {every} steps"


def data(run: Run) -> list[tuple[str, str]]:
    """Return fingerprints and counts of the training data."""
    return list(flat(run.result.data)) if run.result.data else []
