"""The short form of `scripts/check_faults.py kills` and `files`: kills lose nothing, damage is never silent."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mora.faults import files, full_disk, kills, scenarios, suites
from mora.faults.curves import compare
from mora.faults.saved_attempts import SavedAttempts
from mora.suite.__main__ import main

STEP = {"loss": 1.0, "lr": 0.1}


@pytest.mark.parametrize("name", ["remora", "remora, zero2, two ranks"])
def test_runs_killed_at_random_times_lose_and_double_nothing(tmp_path, name):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown on failure
    (case,) = (case for case in kills.cases() if case.name == name)
    attempts = kills.Attempts(name)
    kills.kill_runs(case, 2, seed, tmp_path, attempts)
    assert attempts.wrong == []
    assert (len(attempts.kills), attempts.lost, attempts.doubled) == (2, 0, 0)
    assert attempts.results == attempts.runs
    assert attempts.difference <= case.tolerance


def test_an_interrupted_check_goes_on_with_the_kills_that_it_has_counted(tmp_path):
    facts, attempts = {"seed": 1, "source": "here"}, kills.Attempts("remora", [{"run": 1}], draws=2, runs=1)
    SavedAttempts(tmp_path, facts).save(attempts)
    assert SavedAttempts(tmp_path, facts).of("remora") == attempts
    assert SavedAttempts(tmp_path, facts).of("lora") == kills.Attempts("lora")
    assert SavedAttempts(tmp_path, facts | {"source": "other"}).of("remora").kills == []
    before = attempts.draw(1).random()
    assert SavedAttempts(tmp_path, facts).of("remora").draw(1).random() == before, (
        "the same kill as without the interruption"
    )
    kills.kill_runs(kills.cases()[0], 1, 1, tmp_path / "runs", attempts)
    assert not (tmp_path / "runs").exists(), "nothing is left to do"
    (tmp_path / "faults.counted.json").write_text("{}")
    assert SavedAttempts(tmp_path, facts).of("remora").kills == []


def test_every_method_is_killed():
    configs = Path(kills.__file__).parents[2] / "configs" / "method"
    assert {*kills.METHODS, "none", "peft"} == {path.stem for path in configs.glob("*.yaml")}


@pytest.mark.parametrize(
    ("steps", "ended", "lost", "doubled"),
    [
        ([1, 2, 3], True, 0, 0),
        ([1, 2], False, 0, 0),
        ([1, 2], True, 1, 0),
        ([1, 3], False, 1, 0),
        ([1, 2, 2, 3], True, 0, 1),
        ([2, 1, 3], True, 0, 1),
        ([1, 2, 3, 4], True, 0, 1),
    ],
)
def test_a_step_that_is_missing_or_stands_twice_is_counted(steps, ended, lost, doubled):
    whole = [STEP | {"step": step} for step in (1, 2, 3)]
    compared = compare([STEP | {"step": step} for step in steps], whole, ended)
    assert (compared.lost, compared.doubled, compared.difference) == (lost, doubled, 0.0)


def test_another_number_and_a_missing_one_are_differences():
    whole = [STEP | {"step": 1, "restart_s": 1.0}]
    assert compare([STEP | {"step": 1, "loss": 1.5, "restart_s": 2.0}], whole, True).difference == 0.5
    assert compare([{"step": 1, "loss": 1.0, "restart_s": 1.0}], whole, True).difference == float("inf")


@pytest.mark.parametrize("options", [suites.options, scenarios._table])
def test_the_suite_of_a_trial_can_begin(options, tmp_path, capsys):
    assert main([*options(tmp_path), "--plan"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("run", ("log.jsonl", "ids.npy", "journal-0.jsonl")), ("comparison", (f"{scenarios.FIRST}.jsonl",))],
)
def test_damaged_files_are_noticed(tmp_path, name, chosen):
    (scenario,) = (scenario for scenario in scenarios.started() if scenario.name == name)
    damaged = list(
        files.damage_files(scenario, tmp_path, lambda name: name.endswith(chosen), ("flipped", "not readable"))
    )
    assert [line for file in damaged for line in file.wrong] == []
    assert sum(file.damages for file in damaged) >= 2 * len(chosen)
    assert {os.path.basename(file.file) for file in damaged} == {*chosen}


def test_a_full_disk_is_said_at_every_write_of_an_evaluation(tmp_path):
    (scenario,) = (scenario for scenario in scenarios.unstarted() if scenario.name == "evaluation")
    (full,) = full_disk.fill_disks(scenario, tmp_path, every=4)
    assert full.wrong == []
    assert full.writes >= 2
    assert full.said == full.writes


def test_a_process_writes_nothing_once_its_disk_is_full(tmp_path):
    asked = f"""
import pathlib
from mora.faults import full_disk
folder = pathlib.Path({str(tmp_path)!r})
full_disk.fill_from(1, folder)
(folder / "first").write_text("whole")
assert (folder / "first").read_text() == "whole"
for write in ((folder / "second").touch, (folder / "folder").mkdir, lambda: (folder / "first").write_text("other")):
    try:
        write()
    except OSError as error:
        assert error.errno == 28, error
    else:
        raise AssertionError("it was written")
"""
    subprocess.run([sys.executable, "-c", asked], check=True)
    assert (tmp_path / "first").read_text() == "whole"
    assert (tmp_path / full_disk.MARK).read_text() == str(tmp_path / "second")


def test_root_obeys_permissions_when_it_is_told_to(tmp_path):
    (tmp_path / "closed").write_text("x")
    (tmp_path / "closed").chmod(0)
    asked = f"""
from mora.faults.privileges import obey_permissions
obey_permissions()
try:
    open({str(tmp_path / "closed")!r})
except PermissionError:
    print("obeyed")
"""
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "obeyed\n"
