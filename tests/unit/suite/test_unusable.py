"""Results that may enter no table, and files that are no results: said, planned and run again, never lost."""

import fcntl
import json
import re
import sys

import pytest
from made_up import write

from mora.config import run_id, source
from mora.config.run_id import result_path
from mora.suite import __main__ as suite
from mora.suite import experiments, figures, launch, plan, runner
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve
from mora.suite.gpus import GpuSlots
from mora.suite.usable import is_current, reportable, result_of

CHANGED = {"commit": "c" * 40, "fingerprint": "changed", "dirty": True}
COPIED = {"commit": None, "fingerprint": "changed", "dirty": None}
STEPS = (300, 500, 700, 900)


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """LoRA r=1 of Table 2 at scale lite: a search of four rates, three final runs."""
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(runner, "interrupt_on_sigterm", lambda: None)
    rows = cell_specs(experiments.load("table2"), "lite")
    return next(row[0] for row in rows if (row[0].row.method, row[0].row.r) == ("lora", 1))


def measure(runs, **more):
    for config in runs:
        write(config, {"value_nll": 1 / config.lr, "uuid_char_acc": 0.5}, steps=STEPS, **more)  # the highest rate wins


def becomes(monkeypatch, here):
    monkeypatch.setattr(source, "of_this_process", lambda: here)


@pytest.mark.parametrize("name", ["search", "final"])
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"dirty": True}, "its source was changed"),
        ({"dirty": None}, "its commit is unknown; scripts/collect_results.py looks for it"),
        ({"status": "failed"}, "it ended as 'failed'"),
        ({"scale": "smoke"}, "it is of scale smoke"),
    ],
)
def test_the_plan_names_what_does_not_count_and_counts_it_as_missing(spec, name, broken, reason):
    measure(spec.search_runs)
    measure(resolve(spec).final_runs)
    assert plan.text([spec], "gpu1") == "1 cell (a task, method and rank each), 7 runs; nothing is missing"
    config = (spec.search_runs if name == "search" else resolve(spec).final_runs)[-1]
    if "scale" in broken:
        broken = {"config": config.model_dump(mode="json") | {"scale": {"name": "smoke"}}}
    measure([config], **broken)
    text = plan.text([spec], "gpu1")
    assert f"{run_id(config)} does not count: {reason}; repeated; the old result moves to unusable/" in text
    assert re.search(rf"^{run_id(config)} r=1 \(the paper's 8\) +[\d,]+ +\S+", text, re.M), "no line with its cost"
    assert "7 runs; missing:" in text
    assert run_id(config) in [run_id(c) for c in runner.startable([spec])]
    assert (resolve(spec).selected is None) == (name == "search")


@pytest.mark.parametrize("here", [CHANGED, COPIED], ids=["changed", "copied"])
def test_a_result_of_the_same_changed_source_is_not_repeated_and_enters_no_table(spec, monkeypatch, capsys, here):
    becomes(monkeypatch, here)
    measure(spec.search_runs, source=here)
    assert resolve(spec).selected is None
    finals = runner.startable([spec])
    assert [(c.lr, c.last_step) for c in finals] == [(spec.search_runs[-1].lr, 1000)] * 3
    measure(finals, source=here)
    assert runner.complete([spec], 1) == []
    assert capsys.readouterr().err == "", "nothing is started, so nothing is said"
    assert resolve(spec).numbers.values is None
    text = plan.text([spec], "gpu1")
    assert text.count("does not count: ") == text.count("; not repeated by the same changed source") == 7
    for other in (CHANGED | {"fingerprint": "another"}, CHANGED | {"dirty": False}):
        becomes(monkeypatch, other)
        assert [run_id(c) for c in runner.startable([spec])] == [run_id(c) for c in spec.search_runs]


@pytest.mark.parametrize(
    "broken", [{"status": "failed"}, {"config": {"scale": {"name": "smoke"}, "task": {"name": "uuid"}}}]
)
def test_what_did_not_end_or_is_of_another_scale_is_repeated_by_any_source(spec, monkeypatch, broken):
    becomes(monkeypatch, CHANGED)
    measure(spec.search_runs[:1], source=CHANGED, **broken)
    result = result_of(spec.search_runs[0])
    assert reportable(result, "lite") is None
    assert not is_current(result, "lite")


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """In place of a worker: a script that writes a result of the source `made_by`, and the run's folder to a list."""
    script = tmp_path / "worker.py"

    def use(config, made_by):
        write(config, {"value_nll": 1.0}, steps=STEPS, source=made_by)
        text = result_path(config).read_text()
        result_path(config).unlink()
        script.write_text(
            f"open({str(tmp_path / 'started')!r}, 'a').write('x')\nopen({str(result_path(config))!r}, 'w').write({text!r})\n"
        )

    monkeypatch.setattr(launch, "_starter", lambda config: [sys.executable, str(script)])
    return use


def test_a_result_that_does_not_count_is_set_aside_and_the_run_done_again(spec, worker, tmp_path, capfd):
    config = spec.search_runs[0]
    worker(config, source.of_this_process())
    measure([config], source=CHANGED, log_rows=[{"step": 1, "loss": 1.0}])
    spectrum = figures.spectrum_path(config)
    spectrum.parent.mkdir()
    spectrum.write_text("{}")
    earlier = result_path(config).read_text()
    assert launch.launch(config) == 0
    assert reportable(launch.result_of(config), "lite")
    aside = result_path(config).parent / "unusable"
    kinds = ("json", "log.jsonl", "spectrum.json")
    assert {p.name for p in aside.iterdir()} == {f"{run_id(config)}.changed.{kind}" for kind in kinds}
    assert (aside / f"{run_id(config)}.changed.json").read_text() == earlier
    assert not spectrum.exists()
    assert "warning" not in capfd.readouterr().err
    assert launch.launch(config) == 0
    assert (tmp_path / "started").read_text() == "x", "a usable result is not repeated"


def test_nothing_is_set_aside_while_a_worker_is_at_the_run(spec):
    config = spec.search_runs[0]
    measure([config], source=CHANGED)
    folder = launch.run_folder(config)
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        launch._set_aside(config, folder)
        assert result_path(config).is_file()
    with launch.unheld(folder) as free:  # another suite looks
        assert free
        launch._set_aside(config, folder)
    assert not result_path(config).is_file()


def test_source_that_changes_under_a_suite_ends_in_a_failure_and_in_no_second_run(
    spec, worker, tmp_path, capfd, monkeypatch
):
    config = spec.search_runs[0]
    monkeypatch.setattr(runner, "startable", lambda specs, explained=None: runner.missing([config]))
    worker(config, CHANGED)
    assert runner.complete([spec], 1) == [run_id(config)]
    assert (tmp_path / "started").read_text() == "x"
    message = f"{run_id(config)}: the source has changed since the suite started: start the suite again"
    assert message in capfd.readouterr().err


def test_two_suites_of_different_changed_source_do_not_repeat_each_others_runs_for_ever(spec, monkeypatch):
    becomes(monkeypatch, CHANGED)
    first, *_ = spec.search_runs
    started = []

    def fake(config, output, env):
        started.append(run_id(config))
        measure([config], source=CHANGED)
        if len(started) == 2:  # meanwhile the other suite has made the first one anew
            measure([first], source=CHANGED | {"fingerprint": "another"})
        return 0

    monkeypatch.setattr(runner, "launch", fake)
    assert runner.complete([spec], 1) == []
    assert started == [run_id(config) for config in spec.search_runs]


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (CHANGED, "warning: the source is changed since the commit: results will enter no table"),
        (COPIED, "warning: no git repository: results enter no table until scripts/collect_results.py"),
    ],
)
def test_changed_source_is_said_once_at_the_start(spec, monkeypatch, capsys, here, expected):
    becomes(monkeypatch, here)
    monkeypatch.setattr(runner, "launch", lambda config, output, env: measure([config], source=here) or 0)
    assert runner.complete([spec], 2) == []
    err = capsys.readouterr().err
    assert err.startswith(expected)
    assert err.count("warning") == 1
    assert launch.warning("smoke") is None


def test_a_single_run_on_changed_source_says_so_too(spec, monkeypatch, worker, capfd):
    becomes(monkeypatch, CHANGED)
    worker(spec.search_runs[0], CHANGED)
    assert launch.launch(spec.search_runs[0]) == 0
    assert "warning: the source is changed since the commit" in capfd.readouterr().err


def without(result, field):
    *above, last = field.split(".")
    section = result
    for name in above:
        section = section[name]
    del section[last]
    return json.dumps(result)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda result: json.dumps(result)[:100], "Unterminated string|Expecting"),
        (lambda result: "", "Expecting value"),
        (lambda result: "[]", "expected an object"),
        (lambda result: without(result, "source"), "no field source.dirty"),
        (lambda result: without(result, "source.fingerprint"), "no field source.fingerprint"),
        (lambda result: without(result, "config"), "no field config"),
        (lambda result: without(result, "metrics"), "no field metrics"),
    ],
)
@pytest.mark.parametrize("mode", [["--render"], ["--plan"], []])
def test_a_damaged_result_ends_everything_in_one_line_that_names_it(spec, monkeypatch, capsys, mode, damage, complaint):
    path = result_path(spec.search_runs[0])
    measure(spec.search_runs[:1])
    path.write_text(damage(json.loads(path.read_text())))
    monkeypatch.setattr(plan, "ROOT", source.ROOT)
    monkeypatch.setattr(sys, "argv", ["mora.suite", "table2", "--scale", "lite", *mode])
    assert suite.main() == 2
    err = capsys.readouterr().err
    assert re.fullmatch(rf"mora\.suite: {re.escape(str(path))} is damaged \(.*({complaint}).*\): remove it, .*\n", err)


def test_a_run_whose_result_does_not_stand_has_failed(spec, monkeypatch):
    monkeypatch.setattr(runner, "launch", lambda config, output, env: measure([config], source=CHANGED) or 0)
    assert runner._run(spec.search_runs[0], GpuSlots(1, [])) == 1
