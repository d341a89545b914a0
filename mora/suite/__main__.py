"""python -m mora.suite table2 figure3 --scale lite: start an experiment's missing runs, then render its table or figure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mora.config import ConfigError, RunConfig, provenance
from mora.config.hardware_schema import ScaleName
from mora.config.source import ROOT
from mora.errors import ends_in_one_line
from mora.io import replace_file

from . import (
    claims,
    commands,
    experiments,
    figures,
    launch,
    ledger_text,
    memory_study,
    overrides,
    plan,
    runner,
    settings,
    slurm,
    tables,
)
from .arguments import parse
from .cell_filter import filter_cells
from .cell_specs import CellSpec, cell_specs
from .cells import ResolvedCell, resolve, resolve_all
from .contrasts import ResolvedTables
from .experiments import Experiment
from .usable import is_current, result_of

DEFAULT_SCALE = (
    "no --scale given, so scale paper: the paper's models and data on its hardware; --scale lite or smoke needs less"
)
Rows = dict[tuple[str, ScaleName], list[list[CellSpec]]]


@ends_in_one_line("mora.suite", stopped="stopped; start it again to resume from the checkpoints")
def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if not args.names and not args.render:
        print(f"mora.suite: expected the name of an experiment: {', '.join(experiments.names())}", file=sys.stderr)
        return 2
    if args.scale is None:
        args.scale = "paper"
        if not args.render:  # --render shows every scale
            print(DEFAULT_SCALE, file=sys.stderr)
    failed = _do(args, {name: experiments.load(name) for name in args.names or experiments.names()})
    if failed:
        print(f"mora.suite: {len(failed)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _do(args: argparse.Namespace, loaded: dict[str, Experiment]) -> list[str]:
    """Plan, submit, or run and render; return the runs that failed."""
    of_runs, of_job = _checked_settings(args)
    rows = _rows(args, loaded, of_runs)
    cells = filter_cells([spec for group in rows.values() for row in group for spec in row], args.only)
    if args.plan:
        print(_plan(args, rows, cells, of_runs))
        return []
    if args.force and not args.render:
        _repeat(cells)
    if args.hardware == "slurm" and not slurm.in_job():
        _hand_in(args, cells, of_runs, of_job)
        return []
    failed = [] if args.render else _run(args, loaded, rows, cells)
    resolved = {where: resolve_all(group) for where, group in rows.items()}
    for (name, scale), group in resolved.items():
        print(_render(name, loaded[name], group, scale, args.results))
    if args.render and not args.names:
        _render_summaries(resolved, args.results)
    return failed


def _checked_settings(args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Return the settings of the runs, and the options of the job. Raises ConfigError."""
    of_runs, of_job = slurm.split(args.set)
    overrides.check(of_runs, args.results)
    if args.results is not None and args.results.exists() and not args.results.is_dir():
        raise ConfigError(f"--results {args.results}: is a file; expected a folder, which is made where there is none")
    if of_job and args.hardware != "slurm":
        raise ConfigError(f"--set {slurm.PREFIX}{next(iter(of_job))}: only valid with --hardware slurm")
    return of_runs, of_job


def _rows(args: argparse.Namespace, loaded: dict[str, Experiment], of_runs: list[str]) -> Rows:
    """Return the cells of every experiment at every scale that was asked for."""
    given = overrides.given(args, of_runs)
    changed = {name: overrides.applied(experiment, given) for name, experiment in loaded.items()}
    scales: tuple[ScaleName, ...] = claims.COMPARED if args.render else (args.scale,)
    shown = [(name, s) for name, e in changed.items() for s in scales if not args.render or e.has(s)]
    return {(name, s): cell_specs(changed[name], s, _seeds(args)) for name, s in shown}


def _seeds(args: argparse.Namespace) -> list[int] | None:
    return list(range(args.seeds)) if args.seeds else None


def _plan(args: argparse.Namespace, rows: Rows, cells: list[CellSpec], of_runs: list[str]) -> str:
    if args.plan == "commands":
        return commands.text(cells, args.gpu)
    hardware = args.hardware or ("gpu8" if args.scale == "paper" else "gpu1")
    powers = [] if args.render else _powers(args, rows, cells)
    return "\n".join([plan.text(cells, hardware, of_runs, args.gpu), *powers])


def _powers(args: argparse.Namespace, rows: Rows, cells: list[CellSpec]) -> list[str]:
    """Return one line per claim that these tables judge, with its power; with --only, that the chosen cells are part of."""
    chosen = {id(spec) for spec in cells}
    lines = []
    for (name, scale), group in rows.items():
        of_table = [spec for row in group for spec in row if id(spec) in chosen]
        lines += claims.plan_lines(name, scale, _seeds(args), of_table if args.only else None)
    return lines


def _run(args: argparse.Namespace, loaded: dict[str, Experiment], rows: Rows, cells: list[CellSpec]) -> list[str]:
    """Start the missing runs, measure the spectra that a figure shows, and return the runs that failed."""
    _say_what_is_there(cells, args)
    for line in (line for line in _powers(args, rows, cells) if claims.WEAK in line):
        print(line, file=sys.stderr)
    failed = runner.complete(cells, args.jobs, patient=args.hardware != "slurm")
    for (name, _), group in rows.items():
        if loaded[name].kind == "spectrum":
            runner.measure_spectra([spec for row in group for spec in row])
    return failed


def _render_summaries(resolved: dict[tuple[str, ScaleName], list[list[ResolvedCell]]], results: Path | None) -> None:
    """Write what is made of all tables together: the claims, the headline, the rate figures, DEVIATIONS.md."""
    from .report import headline, rate_figure  # they load matplotlib, which nothing here needs before

    judged = ResolvedTables(resolved)
    ledger_text.render(resolved=judged)
    headline.render(judged)
    for scale in claims.COMPARED:
        at_scale = [cells for (_, s), cells in resolved.items() if s == scale]
        rate_figure.render(scale, at_scale, _folder("figures", scale, results))
    replace_file(provenance.DEVIATIONS, provenance.deviations())


def _hand_in(args: argparse.Namespace, specs: list[CellSpec], of_runs: list[str], of_job: dict[str, str]) -> None:
    """Submit one array job of `--jobs` tasks, unless nothing is missing."""
    if not runner.startable(specs):
        print("nothing is missing: no job was submitted")
        return
    logs = launch.run_folder(specs[0].config).parent / "slurm"
    script = slurm.script(slurm.command(args, of_runs), specs[0].config.hardware, args.jobs, of_job, logs)
    number = slurm.submit(script, logs)
    print(f"job {number}, {args.jobs} tasks: {logs}/{number}_*.out; repeat the command to submit what is still missing")


def _repeat(specs: list[CellSpec]) -> None:
    """Set aside every result of these cells."""
    moved = [path for config in _known(specs) if (path := launch.repeat(config))]
    if moved:
        go_on = "to resume after a stop, start without FORCE=1 (--force)"
        print(f"{len(moved)} results were moved to {moved[0].parent}; {go_on}")


def _known(specs: list[CellSpec]) -> list[RunConfig]:
    """Return every run of these cells that is known by now: searches, and the final runs of chosen learning rates."""
    resolved = [resolve(spec, is_current) for spec in specs]
    return [run.config for cell in resolved for run in (*cell.planned_search_runs, *cell.planned_final_runs)]


def _say_what_is_there(specs: list[CellSpec], args: argparse.Namespace) -> None:
    """If nothing is left to run, print why."""
    there = {str(launch.result_path(config)) for config in _known(specs) if result_of(config) is not None}
    if there and not runner.startable(specs):
        again = "FORCE=1 (--force) repeats them; RESULTS=FOLDER (--results FOLDER) runs them into another folder"
        print(f"nothing to run: all {len(there)} results exist in {Path(min(there)).parent}; {again}")


def _render(
    name: str, experiment: Experiment, rows: list[list[ResolvedCell]], scale: ScaleName, results: Path | None
) -> str:
    if experiment.kind == "settings":
        if scale != "paper":
            return f"{name}: only at scale paper"
        path = settings.render(name, experiment, _folder("tables", scale, results))
    elif experiment.kind == "table":
        path = tables.render(name, experiment, rows, scale, _folder("tables", scale, results))
    else:
        draw = memory_study.render if experiment.kind == "memory" else figures.render
        drawn = draw(name, experiment, rows, scale, _folder("figures", scale, results))
        return f"figure: {_relative(drawn)}" if drawn else f"{name}, scale {scale}: nothing to draw yet"
    return f"{path.read_text()}\n{_relative(path)}"


def _folder(kind: str, scale: ScaleName, results: Path | None) -> Path:
    return figures.output_folder(scale, kind) if results is None else results.resolve() / kind


def _relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    sys.exit(main())
