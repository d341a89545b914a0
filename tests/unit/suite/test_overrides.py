"""--hardware, --set, --results, --force, --plan commands: which runs they make, and which they refuse."""

import json
import shlex
import sys
from argparse import Namespace

import pytest
from made_up import write

from mora.config import ConfigError, compose, source
from mora.config.run_id import result_path, run_id
from mora.config.source import ROOT
from mora.suite import __main__ as suite
from mora.suite import commands, experiments, launch, micro_batch, overrides, progress, runner, slurm
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve
from mora.suite.gpus import GpuSlots


def cells(name="table2", scale="smoke", given=()):
    rows = cell_specs(overrides.applied(experiments.load(name), list(given)), scale)
    return [spec for row in rows for spec in row]


@pytest.mark.parametrize("name", ["table1", "table3"])
def test_hardware_and_micro_batch_change_where_runs_are_done_and_not_which(name):
    plain = cells(name)
    placed = cells(name, given=["hardware=cpu2", "hardware.micro_batch_size=2"])
    for before, after in zip(plain, placed, strict=True):
        for one, other in zip(resolve(before).needed, resolve(after).needed, strict=True):
            assert run_id(one) == run_id(other)
            assert (other.hardware.name, other.hardware.processes, other.micro_batch_size) == ("cpu2", 2, 2)


@pytest.mark.parametrize("setting", ["task.train.stop_step=3", "seed=4", "task.data.max_length=64"])
def test_what_changes_a_result_needs_a_folder_of_its_own(setting, tmp_path):
    with pytest.raises(ConfigError, match=r"changes what is measured, .*RESULTS=FOLDER"):
        overrides.check([setting], None)
    overrides.check([setting], tmp_path)


def test_what_changes_none_is_taken():
    overrides.check(["hardware.micro_batch_size=4", "tracker=none", "task.train.log_every_steps=7"], None)


def call(monkeypatch, tmp_path, *arguments):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(runner, "interrupt_on_sigterm", lambda: None)
    monkeypatch.setattr(sys, "argv", ["mora.suite", "table2", "--scale", "smoke", *arguments])
    return suite.main()


@pytest.fixture
def results(tmp_path):
    return ["--results", str(tmp_path / "own")]


def fake_worker(monkeypatch, started):
    def run(config, output, env):
        started.append(config)
        write(config, {"uuid_char_acc": 0.5}, steps=(100, 200, 300))
        return 0

    monkeypatch.setattr(runner, "launch", run)


def test_results_are_made_in_a_folder_of_their_own_and_made_again_by_force(monkeypatch, tmp_path, capsys, results):
    started = []
    fake_worker(monkeypatch, started)
    assert call(monkeypatch, tmp_path, *results, "--hardware", "cpu") == 0
    assert {c.hardware.name for c in started} == {"cpu"}
    assert all(result_path(c).parent == tmp_path / "own" / "runs" for c in started)
    assert (tmp_path / "own" / "tables" / "table2-smoke.md").is_file()
    first, said = len(started), capsys.readouterr().out
    assert f"{first}/{first} runs" in said

    assert call(monkeypatch, tmp_path, *results) == 0
    assert len(started) == first
    assert f"nothing to run: all {first} results exist" in capsys.readouterr().out

    assert call(monkeypatch, tmp_path, *results, "--force", "--only", "method=mora") == 0
    again = len(started) - first
    assert again == 2
    assert f"{again} results were moved to" in capsys.readouterr().out
    assert len(list((tmp_path / "own" / "runs" / "earlier").glob("*.1.json"))) == again
    assert call(monkeypatch, tmp_path, *results, "--force", "--only", "method=mora") == 0
    assert len(list((tmp_path / "own" / "runs" / "earlier").glob("*.json"))) == 2 * again

    for first in (tmp_path / "own" / "runs" / "earlier").glob("*.1.json"):
        first.unlink()
    assert call(monkeypatch, tmp_path, *results, "--force", "--only", "method=mora") == 0
    kept = {path.name.split(".")[1] for path in (tmp_path / "own" / "runs" / "earlier").glob("*.json")}
    assert kept == {"2", "3"}, "one that was removed makes no room for another"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hardware", "gpu9"], "hardware=gpu9: there is no such hardware"),
        (["--set", "hardware"], "--set hardware: expected KEY=VALUE"),
        (["--set", "task.train.stop_step=1"], "changes what is measured"),
        (["--set", "hydra.launcher.partition=gpu"], "only valid with --hardware slurm"),
        (["--hardware", "gpu8"], "hardware.processes=8 (hardware=gpu8): there is no GPU here"),
        (["--hardware", "slurm"], "there is no sbatch in PATH"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(monkeypatch, tmp_path, capsys, arguments, said):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(source, "ROOT", tmp_path)  # no results
    monkeypatch.setattr(runner, "launch", None)
    assert call(monkeypatch, tmp_path, *arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_the_commands_of_a_plan_are_those_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    specs = [spec for spec in cells("table2", "lite", ["hardware=gpu1"]) if spec.row.r in (None, 1)]
    assert {spec.row.operator for spec in specs} == {None, "decouple", "rotation"}
    lines = commands.text(specs).splitlines()
    assert lines[-1].startswith("# and the final runs of ")
    made = {run_id(compose(shlex.split(line)[2:])) for line in lines[:-1]}
    assert made == {run_id(c) for spec in specs for c in (*spec.search_runs, *resolve(spec).final_runs)}
    for config in (c for spec in specs for c in spec.search_runs):
        write(config, {specs[0].experiment.selection: 1.0})
    lines = commands.text(specs).splitlines()
    made = {run_id(compose(shlex.split(line)[2:])) for line in lines}
    assert made == {run_id(c) for spec in specs for c in resolve(spec).final_runs}


def test_a_command_has_the_micro_batch_that_fits(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    from mora.planner.gpus import gpu

    (spec,) = [
        g
        for g in cells("table1", "paper", ["hardware=gpu1"])
        if g.base[:3] == ["task=metamath", "scale=paper", "method=fft"]
    ][:1]
    for line in commands.text([spec], gpu("48,300")).splitlines()[:1]:
        config = compose(shlex.split(line)[2:])
        assert config.micro_batch_size == micro_batch.fitted(spec.config, 48 * 2**30).micro_batch_size < 128


SLURM = [
    "task=metamath",
    "method=mora",
    "r=8",
    "hardware=slurm",
]


def test_the_job_of_a_table():
    logs = ROOT / "outputs" / "slurm"
    args = Namespace(names=["table1"], scale="paper", seeds=3, results=None, only=["r=8", "task=uuid"])
    command = slurm.command(args, ["hardware.offload=true"])
    made = slurm.script(command, compose(SLURM).hardware, 4, {"partition": "gpu", "mem_gb": "200"}, logs)
    expected = (ROOT / "tests" / "unit" / "suite" / "table_job.sh").read_text()
    assert made.replace(sys.executable, "PYTHON").replace(str(ROOT), "ROOT") == expected


def test_tasks_of_several_nodes_are_refused():
    hardware = compose([*SLURM, "hardware.nodes=2"]).hardware
    with pytest.raises(ConfigError, match=r"JOBS=4, hardware\.nodes=2: expected JOBS=1"):
        slurm.script(["x"], hardware, 4, {}, ROOT)


def test_an_option_of_the_job_that_sbatch_has_under_another_name_replaces_the_preset():
    options = {"name": "mine", "signal_delay_s": "300", "timeout_min": "60", "cpus_per_task": "8"}
    made = slurm.script(["x"], compose(SLURM).hardware, 1, options, ROOT)
    asked = dict(line.removeprefix("#SBATCH --").split("=") for line in made.splitlines() if line.startswith("#SBATCH"))
    assert asked | {"job-name": "mine", "signal": "TERM@300", "time": "60", "cpus-per-task": "8"} == asked
    assert not {"name", "signal-delay-s", "timeout-min"} & asked.keys()


@pytest.mark.parametrize("setup", ["[module load cuda, ulimit -n 4096]", "ulimit -n 4096"])
def test_lines_of_setup_come_before_the_run_and_keep_the_tasks_cores(setup):
    made = slurm.script(["x"], compose(SLURM).hardware, 1, {"setup": setup}, ROOT).splitlines()
    assert made[-2] == "ulimit -n 4096"
    assert any("export SRUN_CPUS_PER_TASK=" in line for line in made)
    assert not any("#SBATCH --setup" in line for line in made)


def test_a_table_is_handed_in_once_and_what_is_missing_again(monkeypatch, tmp_path, capsys, results):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(f"#!/bin/sh\ncat > {tmp_path}/handed_in\necho '77;cluster'\n")
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    given = [*results, "--hardware", "slurm", "--jobs", "3", "--set", "hydra.launcher.partition=gpu"]
    assert call(monkeypatch, tmp_path, *given) == 0
    assert "job 77, 3 tasks" in capsys.readouterr().out
    script = (tmp_path / "handed_in").read_text()
    assert "#SBATCH --array=1-3\n" in script
    assert "#SBATCH --partition=gpu\n" in script
    assert "hydra.launcher" not in script
    *_, last = script.splitlines()
    assert suite.parse(shlex.split(last)[5:]).hardware == "slurm"
    started = []
    fake_worker(monkeypatch, started)
    monkeypatch.setenv("SLURM_JOB_ID", "77")  # a task of the job
    monkeypatch.setattr(runner.preflight, "visible", lambda: ["0"] * 8)
    assert call(monkeypatch, tmp_path, *given[:4], "--jobs", "1") == 0
    assert started
    monkeypatch.delenv("SLURM_JOB_ID")
    capsys.readouterr()
    assert call(monkeypatch, tmp_path, *given) == 0
    assert "nothing is missing: no job was submitted" in capsys.readouterr().out


def test_runs_of_several_gpus_share_none():
    slots = GpuSlots(4, [str(i) for i in range(8)], ranks=4)
    assert slots.jobs == 2
    with slots.take(4) as one, slots.take(4) as other:
        assert one["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
        assert other["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert GpuSlots(4, ["0", "1"], ranks=8).jobs == 1
    assert GpuSlots(2, [], ranks=2).jobs == 2


def test_progress_says_where_runs_are_and_how_long_it_takes(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path))
    now = [0.0]
    config = resolve(cells()[0]).final_runs[0]
    said = progress.SuiteProgress(3, clock=lambda: now[0])
    said.begin(config)
    now[0] = 61.0
    assert said.line(config) == f"{run_id(config)}: no step yet (1 min)"
    log = launch.run_folder(config) / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"step": 30, "loss": 1.25}) + "\n" + json.dumps({"step": 30, "value_nll": 2.0}) + "\n")
    said.say([config])
    assert capsys.readouterr().out.splitlines() == [
        f"  {run_id(config)}: step 30/300, loss 1.250, about 9 min left",
        "  0/3 runs",
    ]
    said.say([config])
    assert capsys.readouterr().out == "", "once a minute"
    now[0] = 600.0
    said.end(config, True)
    assert said.whole() == "1/3 runs, about 20 min left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (61, "1 min"), (3720, "1 h 2 min"), (172800 + 3 * 3600, "2 d 3 h")]
)
def test_duration_uses_at_most_two_units(seconds, text):
    assert progress.duration(seconds) == text
