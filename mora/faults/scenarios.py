"""Scenarios of fault injection: an interrupted run, an interrupted evaluation, a comparison of scores, a suite."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mora.config.run_id import log_path, result_path
from mora.train import log

from . import forked
from .curves import TIMES
from .kills import SMALL, SUMS, Case, run_folder, start, to_its_end

CUT_AT = "in_evaluation:12"  # there are two checkpoints then, and the evaluation of the second is not written yet
SETTINGS = (
    *SUMS, *SMALL, "scale=smoke", "method=mora", "r=4", "task.train.warmup_steps=2",
    "task.train.checkpoint_every_steps=6", "task.evaluation.at_steps=[6,12]", "task.evaluation.loss_every_steps=6",
    "task.train.stop_step=14", "task.evaluation.tasks=[metamath_gsm8k_gold,metamath_math_gold]",  # none is generated
)  # fmt: skip
RUN = Case("a cut run", SETTINGS)
ANOTHER_RUN = Case("another run", (*SETTINGS, "seed=1"))
SUITE = (
    "task.train.stop_step=6", "task.evaluation.tasks=[]", "task.evaluation.at_steps=[]", "task.train.log_every_steps=1",
)  # fmt: skip
LIMIT_S = 600.0
_PRINTED = ("output.txt", "code.txt", ".lock")
_AROUND = (*_PRINTED, "model", "data", "cache", "outputs")  # the last: of runs, which are a scenario of their own


@dataclass(frozen=True)
class Scenario:
    """Something that writes files, and reads them when it is started again.

    Attributes:
        name: Its name in tables.
        make: Writes the files into a folder.
        other: Writes the files of another run, evaluation or suite of the same kind.
        resume: Starts it again in the folder, after a preparation of the process, and returns what was printed.
        outcome: Returns what there is then; None if it did not end well.
        unread: Names of files and folders that it does not read.
    """

    name: str
    make: Callable[[Path], None]
    other: Callable[[Path], None]
    resume: Callable[[Path, forked.Prepare], str]
    outcome: Callable[[Path], Any]
    unread: tuple[str, ...] = ()

    def undamaged_outcome(self, made: Path, again: Path) -> Any:
        """Make the files in `made`, resume in a copy, `again`; return the outcome. Raises RuntimeError if there is none."""
        self.make(made)
        shutil.copytree(made, again)
        said = self.resume(again, forked.as_it_is)
        if (outcome := self.outcome(again)) is None:
            raise RuntimeError(f"{self.name}: undamaged, it did not end: {said[-1500:]}")
        return outcome


def started() -> list[Scenario]:
    """Return the scenarios that were started before, whose files can be damaged."""
    run = Scenario("run", _cut(RUN), _cut(ANOTHER_RUN), _resume_run, _of_run, (*_PRINTED, "evaluation_data"))
    made, other = _cut_evaluation("0"), _cut_evaluation("1")
    evaluation = Scenario("evaluation", made, other, _evaluate_again, _of_evaluation, (*_AROUND, "samples"))
    comparison = Scenario("comparison", _scores("0"), _scores("1"), _compare, _of_comparison, (*_AROUND, "result.json"))
    suite = Scenario("suite", _suite("0"), _suite("1"), _suite_again, _of_suite, _AROUND)
    return [evaluation, comparison, suite, run]


def unstarted() -> list[Scenario]:
    """Return the scenarios that have writes before them: a preparation and run, an evaluation, a suite that lacks a run."""
    run = Scenario("preparation and run", _nothing, _nothing, _resume_run, _of_run)
    evaluation = Scenario("evaluation", _model("0"), _model("1"), _evaluate_again, _of_evaluation)
    suite = Scenario("suite", _suite_without_a_run, _nothing, _suite_again, _of_suite)
    return [run, evaluation, suite]


def _nothing(folder: Path) -> None:
    folder.mkdir(parents=True)


def _model(seed: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _nothing(folder)
        _call(folder, "mora.faults.evaluation", [str(folder), seed])

    return make


def _suite_without_a_run(folder: Path) -> None:
    _suite("0")(folder)
    next((folder / "own" / "runs").glob("*[0-9a-f].json")).unlink()
    shutil.rmtree(folder / "own" / "tables")


def _cut(case: Case) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        config = case.config(folder)
        (worker,) = start(case, folder, config, MORA_KILL_AT=CUT_AT)
        worker.join()
        if worker.exitcode != -9:
            said = (run_folder(folder, config) / "output.txt").read_text()
            raise RuntimeError(f"{case.name} was not cut: {said[-800:]}")

    return make


def _resume_run(folder: Path, prepare: forked.Prepare) -> str:
    config = RUN.config(folder)
    printed = run_folder(folder, config) / "output.txt"
    before = len(printed.read_text()) if printed.exists() else 0
    try:
        return to_its_end(RUN, folder, config, prepare)[before:]
    except OSError as error:  # of what the launcher writes, which run.py says in a line
        return str(error)


def _of_run(folder: Path) -> Any:
    config = RUN.config(folder)
    if not result_path(config).is_file():
        return None
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in log.read(log_path(config))]
    return rows, json.loads(result_path(config).read_text())["metrics"]


MILLISECONDS = re.compile(r"(~|\\sim\$)[\d,.]+")  # of a step, as tables write them
FIRST, SECOND = "metamath_gsm8k", "metamath_math"


def _evaluation(folder: Path, *tasks: str) -> list[str]:
    settings = ["--data-dir", str(folder / "data"), "--output", str(folder / "scores"), "--device", "cpu"]
    return [str(folder / "model"), "--batch-size", "1", "--task", *tasks, *settings]


def _cut_evaluation(seed: str) -> Callable[[Path], None]:
    """Return a maker of files with the scores of one task and some answers of the next."""

    def make(folder: Path) -> None:
        _model(seed)(folder)
        _call(folder, "mora.evaluate.__main__", _evaluation(folder, FIRST))
        journal = folder / "scores" / "journal.jsonl"
        process = _begin(folder, "mora.evaluate.__main__", _evaluation(folder, SECOND))
        while process.is_alive() and not (journal.is_file() and len(journal.read_text().splitlines()) > 2):
            time.sleep(0.002)
        process.kill()
        process.join()
        if not journal.is_file():
            raise RuntimeError(f"the evaluation was not cut: {(folder / 'output.txt').read_text()[-800:]}")

    return make


def _evaluate_again(folder: Path, prepare: forked.Prepare) -> str:
    return _call(folder, "mora.evaluate.__main__", _evaluation(folder, SECOND), prepare)


def _of_evaluation(folder: Path) -> Any:
    return json.loads((folder / "scores" / "result.json").read_text())["metrics"] if _ended_well(folder) else None


def _scores(seed: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _model(seed)(folder)
        _call(folder, "mora.evaluate.__main__", _evaluation(folder, FIRST))

    return make


def _compare(folder: Path, prepare: forked.Prepare) -> str:
    scores = str(folder / "scores")
    return _call(folder, "mora.evaluate.compare", [scores, scores], prepare)


def _of_comparison(folder: Path) -> Any:
    said = (folder / "output.txt").read_text().rpartition("Against ")[2].replace(str(folder), "")
    return said if _ended_well(folder) else None


def _suite(seed: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        _call(folder, "mora.suite.__main__", _table(folder, f"task.train.warmup_steps={seed}"))

    return make


def _table(folder: Path, *settings: str) -> list[str]:
    names = ["table_restarts", "figure_restarts", "--scale", "smoke", "--jobs", "2", "--results", str(folder / "own")]
    return [*names, "--set", *SUITE, *settings]


def _suite_again(folder: Path, prepare: forked.Prepare) -> str:
    return _call(folder, "mora.suite.__main__", _table(folder, "task.train.warmup_steps=0"), prepare)


def _of_suite(folder: Path) -> Any:
    """Return the runs' metrics and what was rendered, without the milliseconds, which differ whenever a run is repeated."""
    if not _ended_well(folder):
        return None
    runs = {p.name: json.loads(p.read_text())["metrics"] for p in (folder / "own" / "runs").glob("*[0-9a-f].json")}
    rendered = [path for part in ("tables", "figures") for path in (folder / "own" / part).glob("*")]
    return runs, {path.name: MILLISECONDS.sub(r"\1", path.read_text()) for path in rendered}


def _ended_well(folder: Path) -> bool:
    return (folder / "code.txt").read_text() == "0"


def _begin(
    folder: Path, module: str, arguments: list[str], prepare: forked.Prepare = forked.as_it_is
) -> forked.ForkServerProcess:
    env = {"MORA_CACHE_DIR": str(folder / "cache"), "MORA_OUTPUT_DIR": str(folder / "outputs")}
    return forked.command(module, arguments, folder / "output.txt", env, prepare)


def _call(folder: Path, module: str, arguments: list[str], prepare: forked.Prepare = forked.as_it_is) -> str:
    """Run the module to its end and return what it printed. Its exit code is in `code.txt`."""
    before = len((folder / "output.txt").read_text()) if (folder / "output.txt").exists() else 0
    process = _begin(folder, module, arguments, prepare)
    process.join(LIMIT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
    (folder / "code.txt").write_text(str(process.exitcode))
    return (folder / "output.txt").read_text()[before:]
