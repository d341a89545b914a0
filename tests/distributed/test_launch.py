"""Ranks started by run.py: one result, a death that ends the job, resume, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from tiny_runs import LAUNCHED, TWELVE_STEPS

from mora.config import compose, run_id
from mora.train import log

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    *TWELVE_STEPS,
    "task.evaluation.at_steps=[]",
    "task.evaluation.loss_every_steps=12",
    "method=remora",
    "r=4",
    "method.adapter.dropout=0",
    "method.restart.every_steps=5",
    "method.restart.warmup_steps=1",
]


def start(tmp_path, *overrides, **env):
    own = LAUNCHED | {"MORA_OUTPUT_DIR": str(tmp_path / "outputs")}
    command = [sys.executable, str(ROOT / "run.py"), *RUN, f"scale.results_dir={tmp_path}/results", *overrides]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | own | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def curve(tmp_path, steps=12):
    (path,) = (tmp_path / "results").glob("*.log.jsonl")
    rows = [row for row in log.read(path) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1)), "a step is missing or stands twice"
    return [row["loss"] for row in rows]


def alive(pattern):
    pids = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout.split()
    return [pid for pid in pids if int(pid) != os.getpid()]


RANKS = [
    ["hardware=cpu2", "hardware.parallel=zero2"],
    ["hardware=cpu2", "hardware.parallel=zero3", "hardware.micro_batch_tokens=200", "hardware.padding_free=true"],
]


def forked_ranks(tmp_path, *overrides, **env):
    """The same run's workers without torchrun, each a fork of a process that has imported everything. Exit codes, output."""
    config = compose([*RUN, f"scale.results_dir={tmp_path}/results", *overrides])
    return forked.train(config, tmp_path / "outputs", **env)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The loss curve of one process."""
    tmp_path = tmp_path_factory.mktemp("whole")
    codes, output = forked_ranks(tmp_path, "hardware=cpu")
    assert codes == [0], output
    return curve(tmp_path)


@pytest.mark.parametrize("ranks", RANKS, ids=" ".join)
def test_a_run_whose_rank_dies_is_resumed_and_follows_one_process(tmp_path, ranks, whole):
    for kill_at in ("between_merge_and_reinit:5:0", "in_evaluation:12:0"):
        codes, output = forked_ranks(tmp_path, *ranks, MORA_KILL_AT=kill_at)
        assert codes[0] == -signal.SIGKILL, output
        assert codes[1] != 0, output
    codes, output = forked_ranks(tmp_path, *ranks)
    assert codes == [0, 0], output
    assert len(list((tmp_path / "outputs").iterdir())) == 1, "one output folder whatever the ranks"
    assert curve(tmp_path) == pytest.approx(whole, abs=1e-5)
    values = the_result(tmp_path)
    assert values["hardware"]["ranks"] == 2
    assert values["speed"] is None, "the last step was saved before its evaluation: none was left to do"
    assert values["metrics"]["12"].keys() >= {"value_nll", "uuid_char_acc"}


def the_result(tmp_path):
    (path,) = (tmp_path / "results").glob("*[0-9a-f].json")
    return json.loads(path.read_text())


LONG = ["task.train.epochs=40", "method.restart.every_steps=10", "lr=1e-3"]


def interrupted(process, folder):
    """Sends SIGINT to run.py alone, once five steps are logged, and checks that everything ends as it should."""
    deadline = time.monotonic() + 120
    while len(log.read(folder / "log.jsonl")) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    assert output.count("stopped by signal after step") == 1, "one rank speaks"
    assert "Traceback" not in output, output
    assert not alive(str(folder)), "a rank was left behind"
    stopped = int(re.search(r"stopped by signal after step (\d+)", output)[1])
    assert (folder / "checkpoints" / f"step_{stopped:06d}").is_dir()
    return stopped


@pytest.mark.timeout(900)  # two launches of two ranks, on a machine that may be busy
def test_two_ranks_are_stopped_and_torchrun_by_hand_goes_on_until_a_rank_is_killed(tmp_path):
    """Whoever starts the ranks next ends the run: here forks, in less time."""
    ranks = ["hardware=cpu2", "hardware.parallel=ddp"]  # which imports no DeepSpeed; ZeRO's ranks die and go on above
    ranks += ["task.train.checkpoint_every_steps=1000", "task.train.log_every_steps=1"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background inherits that it is ignored
    assert forked_ranks(tmp_path / "whole", *LONG, "hardware=cpu")[0] == [0]
    folder = tmp_path / "stopped" / "outputs" / run_id(compose([*RUN, *LONG, *ranks]))
    stopped = interrupted(start(tmp_path / "stopped", *LONG, *ranks), folder)
    assert stopped < 30
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    typed = subprocess.run(
        [*torchrun, "-m", "mora.train", str(folder)],
        cwd=ROOT,
        env=os.environ | LAUNCHED | {"MORA_KILL_AT": f"after_step:{stopped + 2}:0"},
        capture_output=True,
        text=True,
    )
    assert typed.returncode != 0
    assert "SIGKILL" in typed.stderr or "Signal 9" in typed.stderr, typed.stderr
    assert not alive(str(folder)), "a rank was left behind"
    codes, output = forked_ranks(tmp_path / "stopped", *LONG, *ranks)
    assert codes == [0, 0], output
    assert len(re.findall("^next: ", output, re.M)) == 1, "one rank speaks"
    assert curve(tmp_path / "stopped", 40) == pytest.approx(curve(tmp_path / "whole", 40), abs=1e-5)
    assert the_result(tmp_path / "stopped")["hardware"]["ranks"] == 2


def test_run_py_under_torchrun_says_what_to_do_instead(tmp_path):
    code, output = finish(start(tmp_path, WORLD_SIZE="2", RANK="0"))
    assert code != 0
    assert "It starts the ranks itself: python run.py ... hardware=gpu8" in output
    assert "Traceback" not in output, output
