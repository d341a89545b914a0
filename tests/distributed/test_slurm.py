"""Sweeps: side by side through joblib, and as SLURM jobs, as far as this machine goes, up to what sbatch gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from tiny_runs import LAUNCHED

from mora.config import compose
from mora.suite.launch import rendezvous

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("slurm_job.sh")
RUN = ["task=uuid", "scale=smoke", "method=mora", "r=4", "hardware=slurm"]
SHORT = ["task.train.stop_step=2", "task.evaluation.tasks=[]", "task.evaluation.loss_every_steps=1000"]


def run_py(tmp_path, *arguments, **env):
    own = LAUNCHED | {"MORA_OUTPUT_DIR": str(tmp_path / "outputs")}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | own | env,
        capture_output=True,
        text=True,
        timeout=240,
    )


def has_run(tmp_path, seed):
    """The run of that seed is there, of a fork, which starts in less time; then the sweep need not do it."""
    of_seed = [*RUN[:-1], *SHORT, f"seed={seed}", "hardware=cpu", f"scale.results_dir={tmp_path}/results"]
    codes, output = forked.train(compose(of_seed), tmp_path / "outputs")
    assert codes == [0], output


def test_a_sweep_becomes_a_job_for_each_run(tmp_path):
    has_run(tmp_path, seed=0)
    here = [
        "hydra/launcher=submitit_local",
        f"hydra.launcher.submitit_folder={tmp_path}/jobs/%j",
        "hardware.device=cpu",
    ]
    where = [f"scale.results_dir={tmp_path}/results", f"hydra.sweep.dir={tmp_path}/sweep", "hardware.processes=1"]
    done = run_py(tmp_path, "-m", *RUN, *SHORT, "seed=0,1", *here, *where)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*[0-9a-f].json")]
    assert sorted(result["config"]["seed"] for result in results) == [0, 1]
    said = [path.read_text() for path in (tmp_path / "jobs").glob("*/*_log.out")]
    assert sorted("already done: " in text for text in said) == [False, True]


def test_a_sweep_runs_side_by_side_through_joblib(tmp_path):
    has_run(tmp_path, seed=0)
    here = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hardware=cpu", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = run_py(tmp_path, "-m", *RUN[:-1], *SHORT, "seed=0,1", *here, f"scale.results_dir={tmp_path}/results")
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*[0-9a-f].json")]
    assert sorted(result["config"]["seed"] for result in results) == [0, 1]


def test_off_a_cluster_a_line_says_what_is_missing(tmp_path):
    refused = run_py(tmp_path, *RUN, PATH="/nowhere")
    assert refused.returncode != 0
    assert refused.stderr.startswith("run.py: hardware=slurm: there is no srun")
    assert "Traceback" not in refused.stderr


@pytest.fixture
def cluster(tmp_path):
    """A PATH with an sbatch that keeps the job's script and takes no job."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text("#!/bin/sh\n")
    (tools / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/job.sh\necho "no such partition" >&2\nexit 1\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return f"{tools}:{os.environ['PATH']}"


def test_the_job_of_a_run_on_two_nodes(tmp_path, cluster):
    here = [f"hydra.launcher.submitit_folder={tmp_path}/jobs/%j", f"hydra.sweep.dir={tmp_path}/sweep"]
    refused = run_py(tmp_path, *RUN, "hardware.nodes=2", "hydra.launcher.partition=gpu", *here, PATH=cluster)
    assert refused.returncode != 0
    assert "no such partition" in refused.stderr
    script = (tmp_path / "job.sh").read_text().replace(str(tmp_path), "FOLDER").replace(sys.executable, "PYTHON")
    assert script == GOLDEN.read_text()


def test_the_nodes_of_a_job_meet_on_its_first_one(monkeypatch):
    job = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu[07-08]"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert rendezvous(compose([*RUN, "hardware.nodes=2"])) == "gpu07:24567"
