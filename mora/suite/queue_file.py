"""The file of `scripts/run_queue.py`, which says how it is written: what runs it holds, and the memory that they claim."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mora.config import ConfigError, RunConfig, compose
from mora.errors import did_you_mean, nearest, one_line, short

from . import commands, experiments
from .cell_filter import filter_cells
from .cell_specs import cell_specs

CLAIM = re.compile(r"\[(\d+(?:\.\d+)?) ?GiB\]\s*")  # at the beginning of a line


class QueuedRun(NamedTuple):
    """A run of the file: its arguments of run.py, and the GiB that its line claims, if it does."""

    arguments: str
    config: RunConfig
    claim_gib: float | None = None


def read(path: Path) -> list[QueuedRun | None]:
    """Return the runs of the file, with None for @wait. Raises ConfigError, which names the file, or the line."""
    runs: list[QueuedRun | None] = []
    for number, text in enumerate(_text(path).splitlines(), 1):
        try:
            runs += _runs_of_line(text.split("#")[0].strip())
        except (ValueError, FileNotFoundError, TypeError) as error:  # ValueError also for an unclosed quote
            raise ConfigError(f"{path}, line {number}: {one_line(error)}") from error
    return runs


def _runs_of_line(line: str) -> list[QueuedRun | None]:
    if line == "@wait":
        return [None]
    claim = CLAIM.match(line)
    if line.startswith("[") and not claim:
        raise ConfigError(f"{line}: expected a claim such as [30 GiB] before the run")
    run, claim_gib = (line[claim.end() :], float(claim[1])) if claim else (line, None)
    runs = _runs_of_word(*shlex.split(run)) if run.startswith("@") else [run] if run else []
    return [QueuedRun(arguments, _compose(arguments), claim_gib) for arguments in runs]


def _runs_of_word(word: str, *rest: str) -> list[str]:
    if word != "@experiment":
        meant = did_you_mean(nearest(word, {"@experiment", "@wait"} - {word}))
        raise ConfigError(f"{word}: expected `@wait` on a line of its own, or `@experiment NAME SCALE`{meant}")
    return missing_runs(*rest)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{short(str(path), 300)}: {error.strerror}; expected a file with a run per line, such as "
            "`task=uuid method=lora r=8`"
        ) from error
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {number}: not UTF-8, which the file must be: {error}") from error


@cache
def _compose(arguments: str) -> RunConfig:
    config = compose(shlex.split(arguments))
    if (ranks := config.hardware.world_size) > 1:
        raise ConfigError(
            f"hardware={config.hardware.name} has {ranks} processes: a run of the queue has one GPU; use hardware=gpu1 here "
            "or start it by run.py"
        )
    return config


def missing_runs(name: str = "", scale: str = "", *only: str) -> list[str]:
    """Return the arguments of the experiment's missing runs that can start now.

    `only` selects cells, as ONLY of `make` does; those of its words that begin with `hardware.` are given to every run.

    Raises:
        ConfigError: A word is not known.
        FileNotFoundError: There is no such experiment.
    """
    if not name:
        raise ConfigError("@experiment: expected NAME SCALE after it, such as `@experiment table1 mid`")
    experiment = experiments.load(name)
    if scale not in experiment.scales:
        known = ", ".join(experiment.scales) or "none, for it has no runs"
        meant = did_you_mean(nearest(scale, experiment.scales))
        raise ConfigError(f"@experiment {name} {scale}".strip() + f": expected a scale after {name}: {known}{meant}")

    rows = cell_specs(experiment, scale)
    hardware = [word for word in only if word.startswith("hardware.")]
    cells = filter_cells([cell for row in rows for cell in row], [w for w in only if w not in hardware])
    return [shlex.join([*words, *hardware]) for words in commands.arguments(cells).values()]
