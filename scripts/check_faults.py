"""Inject faults into runs and suites, such as kills at random times, and count whether anything was lost.

python scripts/check_faults.py kills --out results/checks       # at least 100 kills; interrupted, it goes on by --seed
python scripts/check_faults.py kills --kills 20 --seed 7        # fewer; the seed is printed, and repeats the draws
python scripts/check_faults.py kills --only remora suite        # some of the cases
python scripts/check_faults.py inputs --out results/checks      # at least 1,000 command lines, and as many files
python scripts/check_faults.py files --out results/checks       # every file, cut, flipped, empty, a folder, another's
python scripts/check_faults.py full --out results/checks        # a disk that is full, at every write

kills: a run is started, killed by SIGKILL at a time drawn from the seed, started and killed again, and finally left to end.
The cases are every method in one process; a run whose data are prepared and whose scores are generated; ReMoRA under ZeRO-2
and 3 on two ranks, of which all or one are killed; and Table 2 with JOBS=2, where the suite, one worker, or all are killed.
After every kill the log is compared with that of the uninterrupted run: bit for bit, on several ranks within 1e-5.

inputs: command lines and files made by Hypothesis are given to the code that reads them. Each must be accepted, or refused
in a line that names what is wrong, within three seconds of CPU time. Some command lines also go through run.py itself.

files: a run and an evaluation are interrupted and resumed, scores are compared, and a suite is started again when its runs
are there. Before that, one of their files is damaged, each in turn. Each time, either the file is refused in a line that
names it and nothing else has changed, or the work ends as it does without the damage.

full: the disk is full from the n-th write on, for every n of a preparation and run, an evaluation and a suite.

lost, doubled   steps or evaluations that are missing, or are there twice, over all kills and ends
difference      the largest difference of a loss, gradient norm, rate or metric
source          the commit, and a fingerprint of what runs and suites are made of
results         of the runs that were left to end; each was then started once more, and must not be done again
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mora.checks.runner import Table
from mora.config import ConfigError, source
from mora.config.arguments import output_folder, positive_int
from mora.config.source import ROOT
from mora.errors import ends_in_one_line
from mora.faults import files, full_disk, kills, scenarios, suites
from mora.faults.saved_attempts import SavedAttempts
from mora.suite.launch import interrupt_on_sigterm

ROOM = 4 * 2**30  # with fewer bytes free in memory, runs write to TMPDIR
TESTED = source.Files((*source.NUMBERS.paths, "mora/suite", "run.py"), source.NUMBERS.without)
KILLS = {
    "case": "", "kills": "d", "runs": "d", "results": "d", "lost": "d", "doubled": "d", "difference": ".1e", "status": "",
}  # fmt: skip
FILES = {"file": "", "damages": "d", "healed": "d", "refused": "d", "status": ""}
FULL = {"work": "", "writes": "d", "said": "d", "passed_over": "d", "status": ""}
INPUTS = {
    "kind": "", "inputs": "d", "taken": "d", "refused": "d", "tracebacks": "d", "slowest_s": ".2f", "status": "",
}  # fmt: skip


@ends_in_one_line("check_faults.py")
def main() -> int:
    options = _options()
    interrupt_on_sigterm()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    with _scratch() as scratch:
        table = {"kills": _kills, "inputs": _inputs, "files": _files, "full": _full}[options.part](
            options, seed, scratch
        )
    return 0 if all(row["status"] == "ok" for row in table.rows) else 1


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a folder, in memory if there is room, since runs wait for the disk at every checkpoint."""
    shared = Path("/dev/shm")
    room = shared.is_dir() and shutil.disk_usage(shared).free >= ROOM
    with TemporaryDirectory(dir=shared if room else None, prefix="mora-faults-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _kills(options: argparse.Namespace, seed: int, scratch: Path) -> Table:
    chosen = {case.name: case for case in kills.cases()} | {suites.NAME: None}
    chosen = {name: case for name, case in chosen.items() if _is_wanted(name, options.only)}
    if not chosen:
        names = [*(case.name for case in kills.cases()), suites.NAME]
        raise ConfigError(f"--only {' '.join(options.only)}: expected part of a name: {'; '.join(names)}")
    facts = {"seed": seed, "source": _source()}
    table, saved = Table("faults", KILLS, options.out, facts), SavedAttempts(options.out, facts)
    each = -(-options.kills // len(chosen))
    for i, (name, case) in enumerate(chosen.items()):
        folder, attempts = scratch / str(i), saved.of(name)
        if case is None:
            suites.kill_suites(each, seed, folder, attempts, saved.save)
        else:
            kills.kill_runs(case, each, seed, folder, attempts, saved.save)
        shutil.rmtree(folder, ignore_errors=True)
        more = {
            "kills": len(attempts.kills),
            "all_kills": attempts.kills,
            "status": "wrong" if attempts.wrong else "ok",
        }
        _add(table, asdict(attempts) | more)
    sums = {name: sum(row[name] for row in table.rows) for name in ("kills", "runs", "results", "lost", "doubled")}
    worst = max(row["difference"] for row in table.rows)
    wrong = any(row["wrong"] for row in table.rows)
    table.add(case="all", **sums, difference=worst, status="wrong" if wrong else "ok")
    saved.done()
    return table


def _source() -> str:
    """Return the commit that is tested, and whether the source was changed."""
    described = source.describe(TESTED)
    changed = ", changed" if described["dirty"] else ""
    return f"{str(described['commit'])[:10]}{changed}, fingerprint {described['fingerprint']}"


def _inputs(options: argparse.Namespace, seed: int, scratch: Path) -> Table:
    from mora.faults import fuzzing  # imports Hypothesis, which is in the extra `dev`

    table = Table("fuzzed", INPUTS, options.out, {"seed": seed, "limit_s": fuzzing.LIMIT_S})
    for fuzzed in fuzzing.all_kinds(options.inputs, seed, scratch, lambda name: _is_wanted(name, options.only)):
        _add(table, asdict(fuzzed) | {"refusals": None, "status": "wrong" if fuzzed.wrong else "ok"})
    print(f"{sum(row['inputs'] for row in table.rows)} inputs with seed {seed}")
    return table


def _files(options: argparse.Namespace, seed: int, scratch: Path) -> Table:
    table = Table("damaged", FILES, options.out, {"source": _source()})
    by_name = {scenario.name: scenario for scenario in scenarios.started()}
    chosen = by_name.keys() & {*options.only} or by_name.keys()
    only = [word for word in options.only if word not in by_name]
    for name in (name for name in by_name if name in chosen):
        for damaged in files.damage_files(by_name[name], scratch / name, lambda name: _is_wanted(name, only)):
            _add(table, asdict(damaged) | {"status": "wrong" if damaged.wrong else "ok"})
    sums = {name: sum(row[name] for row in table.rows) for name in ("damages", "healed", "refused")}
    table.add(file="all", **sums, status="wrong" if any(row["wrong"] for row in table.rows) else "ok")
    return table


def _full(options: argparse.Namespace, seed: int, scratch: Path) -> Table:
    table = Table("full", FULL, options.out, {"source": _source()})
    for scenario in scenarios.unstarted():
        if not _is_wanted(scenario.name, options.only):
            continue
        for full in full_disk.fill_disks(scenario, scratch / scenario.name):
            _add(table, asdict(full) | {"status": "wrong" if full.wrong else "ok"})
    return table


def _add(table: Table, row: dict[str, Any]) -> None:
    table.add(**row)
    for line in row["wrong"]:
        print(f"    {line}", flush=True)


def _is_wanted(name: str, only: list[str]) -> bool:
    return not only or any(word in name for word in only)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["kills", "inputs", "files", "full"])
    parser.add_argument("--kills", type=positive_int, default=100, help="at least so many, spread over the cases")
    parser.add_argument(
        "--inputs", type=positive_int, default=1200, help="command lines; a fifth of it of the other kinds"
    )
    parser.add_argument("--seed", type=int, help="of the draws; without, one that is printed")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts of the names of cases")
    parser.add_argument(
        "--out", type=output_folder, help="a folder for the table, as JSON and Markdown, written after every row"
    )
    return parser.parse_args()


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
