"""The checks for real GPUs in their CPU form: rows really run, killed and resumed."""

import importlib.util
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import forked
import pytest
from tiny_runs import LAUNCHED

from mora.checks import runner
from mora.checks.runner import Outcome, last_words
from mora.results import RunResult

ROOT = Path(__file__).resolve().parents[2]


def check(script, tmp_path, *arguments):
    """Exit code, output, and rows of the table that was written."""
    command = [sys.executable, f"scripts/{script}.py", *arguments, "--device", "cpu", "--out", str(tmp_path / "out")]
    env = os.environ | LAUNCHED | {"TORCH_EXTENSIONS_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout + done.stderr, written(tmp_path)


def written(tmp_path):
    (table,) = (tmp_path / "out").glob("*.json")
    assert table.with_suffix(".md").read_text().startswith("- device: cpu\n")
    return json.loads(table.read_text())["rows"]


@pytest.fixture
def check_here(monkeypatch, tmp_path, capfd):
    """`check` in this process and with forked workers, which import nothing anew. Launchers are in the two tests below."""
    monkeypatch.setattr(runner, "launch", forked.launch)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers

    def check(script, *arguments):
        where = ["--device", "cpu", "--out", str(tmp_path / "out"), "--scratch", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments, *where])
        code = load(script).main()
        return code, "".join(capfd.readouterr()), written(tmp_path)

    return check


def load(script):
    spec = importlib.util.spec_from_file_location(script, ROOT / "scripts" / f"{script}.py")
    module = sys.modules[script] = importlib.util.module_from_spec(spec)  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("check_gpu", ["large", "--ranks", "16"], "check_gpu.py: --ranks 16: torch sees "),
        ("check_gpu", ["large", "--only", "dora"], "check_gpu.py: error: --only dora: large has mora, remora, lora"),
        ("check_gpu", ["methods", "--jobs", "0"], "argument --jobs: '0': expected a whole number above 0"),
        ("check_multi_gpu", ["--ranks", "99"], "check_multi_gpu.py: hardware.micro_batch_size=0: input should"),
        ("collect_results", ["/no/such/folder"], "collect_results.py: /no/such/folder holds no *.json"),
        ("lora_conversion_error", ["--r", "0"], "argument --r: '0': expected a whole number above 0"),
    ],
)
def test_bad_input_of_a_script_is_refused_without_a_traceback(script, arguments, expected, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"scripts/{script}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(f"scripts/{script}.py", run_name="__main__")
    assert ended.value.code not in (0, None)
    assert expected in capfd.readouterr().err + str(ended.value.code)


def test_a_row_on_two_cpu_ranks_is_ok(check_here):
    code, output, rows = check_here("check_multi_gpu", "--only", "remora:zero2", "--jobs", "3")
    assert code == 0, output
    (row,) = rows
    assert [row[key] for key in ("method", "parallel", "status", "checked")] == ["remora", "zero2", "ok", 2]
    assert row["resumed_at"] == 16
    assert row["from_one"] < 1e-5
    assert row["norm"] < 1e-5
    assert row["resumed"] == 0
    assert row["last_loss"] < row["first_loss"]


def test_a_run_over_its_time_is_killed_with_its_ranks_and_its_row_fails(tmp_path):
    started = time.monotonic()
    code, output, rows = check("check_multi_gpu", tmp_path, "--only", "lora:ddp", "--jobs", "3", "--run-limit-s", "5")
    assert code == 1
    assert rows[0]["status"] == "failed"
    assert "killed after 5 s" in rows[0]["last_words"]
    assert "killed after 5 s" in output
    assert time.monotonic() - started < 30
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError):
            assert str(tmp_path) not in path.read_text()


def test_after_sigterm_the_table_is_whole_and_nothing_goes_on(tmp_path):
    command = [sys.executable, "scripts/check_multi_gpu.py", "--device", "cpu", "--jobs", "1", "--out", str(tmp_path)]
    env = os.environ | LAUNCHED | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*command, "--only", "lora:ddp", "mora:zero3"],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("mora-check-*/*/output.txt")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" not in output
    rows = json.loads((tmp_path / "ranks.json").read_text())["rows"]
    assert {(row["method"], row["parallel"]): row["status"] for row in rows} == {
        ("lora", "ddp"): "not run",
        ("mora", "zero3"): "failed",
    }
    assert "killed after" in output


@pytest.mark.parametrize(
    ("differences", "status"),
    [
        ({}, "ok"),
        ({"from_plain": 0.05}, "ok"),  # noise is 0.02
        ({"from_plain": 0.07}, "differs"),
        ({"from_one": 0.001}, "differs"),
        ({"norm": 0.002}, "differs"),
        ({"resumed": 0.001}, "differs"),
        ({"resumed": math.nan}, "differs"),
        ({"norm": math.nan}, "differs"),
    ],
)
def test_what_should_be_equal_is_and_what_only_rounds_elsewhere_stays_within_noise(differences, status):
    script = load("check_multi_gpu")
    same = [3.0 - 0.01 * step for step in range(script.STEPS)]

    def outcome(loss=0.0, norm=1.0, last=0.0):
        rows = [{"loss": value + loss, "grad_norm": norm} for value in same]
        rows[-2]["loss"] += last
        return Outcome(0, rows=rows, result=RunResult.model_construct(status="done"))

    base = differences.get("from_plain", 0.04)
    alone = {"one": outcome(differences.get("from_one", 0.0)), "plain": outcome(base), "halved": outcome(base + 0.02)}
    resumed = outcome(norm=1 + differences.get("norm", 0.0))
    ranked = script._Ranked(outcome(last=differences.get("resumed", 0.0)), script.SAVED_AT, resumed)
    assert script._row(("mora", "zero3"), ranked, alone)["status"] == status


def test_methods_without_and_with_a_restart(check_here):
    code, output, rows = check_here("check_gpu", "methods", "--only", "none", "remora")
    assert code == 0, output
    none, remora = rows
    assert [none["run"], none["status"], none["trainable"]] == ["none", "ok", 0]
    assert none["metrics"]["0"]["value_nll"] > 0
    assert [remora["run"], remora["status"], remora["restarts"]] == ["remora", "ok", 2]
    assert len(remora["all_restart_s"]) == 2
    assert remora["tokens_per_s"] > 0


def test_the_large_shape_restarts_under_deepspeed(check_here):
    code, output, rows = check_here("check_gpu", "large", "--only", "remora", "--ranks", "1")
    assert code == 0, output
    (row,) = rows
    assert [row[key] for key in ("run", "status", "parallel", "restarts")] == ["remora", "ok", "zero1", 1]


@pytest.mark.parametrize(
    ("one", "again", "status"), [(100, 100, "above the bar"), (90, 105, "above the bar"), (80, 90, "implausible")]
)
def test_scaling_is_over_the_faster_run_on_one_gpu_and_never_more_than_the_gpus(one, again, status):
    script = load("check_gpu")
    ones = [{"status": "ok", "micro_batch": 8, "tokens_per_s": speed} for speed in (one, again)]
    row = script._scaling(ones, ones[0] | {"tokens_per_s": 198}, ranks=2)
    assert (row["status"], row["ratio"]) == (status, pytest.approx(198 / max(one, again)))


def test_last_words_are_those_of_the_rank_that_died():
    printed = "step 1\rstep 2\n\nValueError: why\nE1124 api.py] failed (exitcode: 1) local_rank: 0\nRoot Cause: ...\n"
    assert last_words(printed) == "step 2\nValueError: why"
