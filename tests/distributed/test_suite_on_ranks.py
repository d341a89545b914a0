"""Tables whose runs take several ranks: through make and DeepSpeed on two of them, killed and gone on; on two nodes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tiny_runs import LAUNCHED

from mora.train import log

ROOT = Path(__file__).resolve().parents[2]
SHORT = "task.train.stop_step=2 task.evaluation.tasks=[] task.train.checkpoint_every_steps=1"


def start(tmp_path, command, **env):
    own = LAUNCHED | {"MORA_OUTPUT_DIR": str(tmp_path / "outputs")}
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEFILES")}
    return subprocess.Popen(
        command, cwd=ROOT, env=clean | own | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=280)
    return process.returncode, output


def results(tmp_path):
    of_files = [json.loads(path.read_text()) for path in (tmp_path / "own" / "runs").glob("*[0-9a-f].json")]
    return {result["run_id"]: result for result in of_files}


def make(tmp_path, only):
    given = ["SCALE=smoke", "HARDWARE=cpu2", f"SET={SHORT}", f"RESULTS={tmp_path / 'own'}", f"ONLY={only}"]
    return ["make", "table1", f"PY={sys.executable}", *given]


def test_table1_on_two_ranks_killed_and_gone_on_repeats_nothing(tmp_path):
    """Full training under ZeRO-3, ReLoRA, of which this task has one rank, under ZeRO-1."""
    command = make(tmp_path, "task=tulu2 method=fft,relora")
    process = start(tmp_path, command)
    until = time.monotonic() + 200
    while not results(tmp_path) and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # make passes it on
    assert finish(process)[0] != 0
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "own" / "runs").glob("*[0-9a-f].json")}
    assert first
    code, output = finish(start(tmp_path, command))
    assert code == 0, output
    assert "| FFT |" in output, "the table is printed"
    made = results(tmp_path)
    assert {result["hardware"]["parallel"] for result in made.values()} == {"zero1", "zero3"}
    assert {result["hardware"]["ranks"] for result in made.values()} == {2}
    assert len(made) == 2
    assert {path: path.stat().st_mtime_ns for path in first} == first
    code, output = finish(start(tmp_path, command))
    assert code == 0
    assert "nothing to run: all 2 results exist" in output


def test_a_suite_on_each_of_two_nodes_does_the_runs_together(tmp_path):
    """One run; that several come in one order on all nodes is tested in `tests/unit/suite/test_nodes.py`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--hardware", "multinode", "--results", str(tmp_path / "own")]
    only = ["--only", "method=mora", "r=8", "task=metamath"]
    local = ["hardware.device=cpu", "hardware.processes=1", f"hardware.rendezvous=localhost:{port}"]
    table = [sys.executable, "-m", "mora.suite", "table1", "--scale", "smoke"]
    command = [*table, *where, *only, "--set", *local, *SHORT.split()]
    nodes = [start(tmp_path, command) for _ in range(2)]
    for code, output in map(finish, nodes):
        assert code == 0, output
    assert [result["hardware"]["ranks"] for result in results(tmp_path).values()] == [2]
    (path,) = (tmp_path / "own" / "runs").glob("*.log.jsonl")
    assert [row["step"] for row in log.read(path) if "loss" in row] == [1, 2], "one rank of all nodes writes"
