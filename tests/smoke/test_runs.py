"""Real runs on the tiny model: every method, killed and resumed, diverged, refused, and the suite over them."""

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
from mora.io import IN_USE
from mora.train import log

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    *TWELVE_STEPS,
    "task.train.log_every_steps=3",
    "task.evaluation.at_steps=[6]",
    "task.evaluation.loss_every_steps=4",
]


def start(tmp_path, *overrides, kill_at=None, **popen):
    own = LAUNCHED | {"MORA_OUTPUT_DIR": str(tmp_path / "outputs")}
    env = os.environ | own | ({"MORA_KILL_AT": kill_at} if kill_at else {})
    flags = [o for o in overrides if o == "-m"]
    values = [*SHORT, f"scale.results_dir={tmp_path}/results", *(o for o in overrides if o != "-m")]
    command = [sys.executable, str(ROOT / "run.py"), *flags, *values]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen
    )


def train(tmp_path, *overrides, kill_at=None):
    config = compose([*SHORT, f"scale.results_dir={tmp_path}/results", *overrides])
    (code,), output = forked.train(config, tmp_path / "outputs", **({"MORA_KILL_AT": kill_at} if kill_at else {}))
    return code, output


def folder_of(tmp_path, *overrides):
    return tmp_path / "outputs" / run_id(compose([*SHORT, *overrides]))


def finish(process):
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def results(tmp_path):
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "results").glob("*.json"))]


def losses(tmp_path):
    (path,) = (tmp_path / "results").glob("*.log.jsonl")
    rows = [row for row in log.read(path) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "a step is missing or stands twice"
    return [(row["step"], row["loss"], row["grad_norm"], row["lr"]) for row in rows]


LIKE_LORA = ("lora", "lora_plus", "asylora", "dora", "mora")
METHODS = {"fft": ["method=fft"]} | {m: [f"method={m}", "r=4"] for m in LIKE_LORA}
RESTARTS = ["r=4", "method.restart.every_steps=5", "method.restart.warmup_steps=1"]
METHODS |= {m: [f"method={m}", *RESTARTS] for m in ("relora", "remora")}
# Killed at every place. The others differ from these in what a checkpoint holds, and are killed beside one.
EVERYWHERE = ("fft", "relora", "remora")
IN_RESTART = ("between_merge_and_reinit:5", "after_restart:5", "after_restart:10")  # before their checkpoints


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_anywhere_repeats_the_uninterrupted_one_bit_for_bit(tmp_path, method):
    overrides = METHODS[method]
    code, output = train(tmp_path / "whole", *overrides)
    assert code == 0, output
    expected = losses(tmp_path / "whole")
    assert len(expected) == 12
    restarting = IN_RESTART if method.startswith("re") else ()
    before, after = ("after_step:3", *restarting[:2], "in_evaluation:6"), (*restarting[2:], "in_evaluation:12")
    everywhere = (*before, "before_rename:8", *after)
    for kill_at in everywhere if method in EVERYWHERE else ("before_rename:8", "in_evaluation:12"):
        code, output = train(tmp_path / "killed", *overrides, kill_at=kill_at)
        assert code == -signal.SIGKILL, f"not killed at {kill_at}: {output}"
        assert not results(tmp_path / "killed")
    code, output = train(tmp_path / "killed", *overrides)
    assert code == 0, output
    assert losses(tmp_path / "killed") == expected
    (whole,), (killed,) = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert killed["metrics"] == whole["metrics"]
    assert killed["status"] == "done"
    assert killed["speed"] is None, "the last step was saved before its evaluation: none was left to do"
    assert {"4", "6", "8", "12"} == set(killed["metrics"])
    assert killed["parameters"]["trainable"] > 0


def test_no_method_is_left_out():
    others = {"none", "peft"}  # the latter by tests/unit/methods/test_any_peft.py
    assert {*METHODS, *others} == {path.stem for path in (ROOT / "configs" / "method").glob("*.yaml")}


def test_the_untuned_model_is_evaluated_only(tmp_path):
    code, output = train(tmp_path, "method=none")
    assert code == 0, output
    (result,) = results(tmp_path)
    assert result["parameters"]["trainable"] == 0
    assert 0 <= result["metrics"]["0"]["uuid_char_acc"]["value"] < 0.2
    journal = (folder_of(tmp_path, "method=none") / "journal-0.jsonl").read_text()
    made_by = json.loads(journal.splitlines()[0])["identity"]
    assert result["source"]["fingerprint"] in made_by, "other code must not take these answers for its own"


def test_a_worker_does_not_repeat_a_run_that_has_a_result(tmp_path):
    train(tmp_path, "method=fft", "task.train.stop_step=2")
    (path,) = (tmp_path / "results").glob("*.log.jsonl")
    written = path.stat().st_mtime_ns
    code, output = train(tmp_path, "method=fft", "task.train.stop_step=2")
    assert (code, path.stat().st_mtime_ns) == (0, written), output
    assert "result: " in output


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(tmp_path):
    code, output = train(tmp_path, "method=fft", "lr=1e30")
    assert code == 0, output
    assert re.search(r"(?m)^diverged: step \d+: loss .*: lower lr$", output)
    (result,) = results(tmp_path)
    assert result["status"] == "diverged"
    assert re.search(r"step \d+: loss .*, lr 5e\+29|step \d+: loss .*lr 1e\+30", result["reason"])
    assert "last good checkpoint: step" in result["reason"]


def test_an_output_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "outputs").write_text("a file")
    code, output = finish(start(tmp_path, "method=fft"))
    assert code != 0
    assert re.search(r"^run.py: .* cannot be made \(Not a directory\): set MORA_OUTPUT_DIR to .*\n\Z", output, re.M)
    assert "Traceback" not in output


def test_a_stop_while_the_worker_still_loads_is_said_to_be_one(tmp_path):
    folder = folder_of(tmp_path, "method=fft")
    process = start(tmp_path, "method=fft")
    deadline = time.monotonic() + 60
    while not (folder / "config.yaml").is_file():  # the worker is started right after, and takes seconds to load torch
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 130, output
    assert f"{folder.name}: stopped; start it again to resume" in output


def test_sigterm_saves_a_checkpoint_after_the_step_at_hand(tmp_path):
    overrides = ["method=fft", "task.train.epochs=4000", "task.train.stop_step=2000"]
    config = compose([*SHORT, f"scale.results_dir={tmp_path}/results", *overrides])
    (worker,), folder = forked.start(config, tmp_path / "outputs")
    deadline = time.monotonic() + 120
    while len(log.read(folder / "log.jsonl")) < 5:
        assert time.monotonic() < deadline
        assert worker.exitcode is None, (folder / "output.txt").read_text()
        time.sleep(0.02)
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 1
    said = re.search(r"^mora\.train: stopped by signal after step (\d+)", (folder / "output.txt").read_text(), re.M)
    assert (folder / "checkpoints" / f"step_{int(said[1]):06d}").is_dir()
    assert not results(tmp_path)


def test_a_stop_in_the_last_evaluation_ends_it_and_its_answers_are_kept(tmp_path):
    overrides = ["method=fft", "task.data.pairs=40", "task.train.stop_step=2", "task.evaluation.batch_size=1"]
    folder = folder_of(tmp_path, *overrides)
    journal = folder / "journal-0.jsonl"

    def answers():
        return journal.read_text().splitlines()[1:] if journal.is_file() else []

    process = start(tmp_path, *overrides)
    deadline = time.monotonic() + 120
    while not answers():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 130, output
    assert (
        "mora.train: stopped by signal after step 2, in its evaluation; a checkpoint and the answers so far were saved"
        in output
    )
    assert "Traceback" not in output
    kept = answers()
    assert len(kept) < 40
    code, output = train(tmp_path, *overrides)
    assert code == 0, output
    assert len(answers()) == 40
    assert answers()[: len(kept)] == kept
    (result,) = results(tmp_path)
    assert result["speed"] is None, "no step was left to do"
    assert 0 < result["scoring_s"] < result["wall_s"]
    assert "uuid_char_acc" in result["metrics"]["2"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=mora", "r=0"], "run.py: r=0: input should be greater than 0"),
        (
            ["method=mroa", "r=4"],
            "run.py: method=mroa: there is no such method; there are asylora",
        ),
        (["method=mora", "r=4", "task.data.pairs=2"], "task.data.pairs=2 is less than"),
    ],
)
def test_bad_input_is_refused_before_a_worker_starts(tmp_path, overrides, expected):
    code, output = finish(start(tmp_path, *overrides))
    assert code != 0
    assert expected in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=llama2_7b", "model.path=/no/such/folder"], "model.path='/no/such/folder' cannot be loaded"),
        (["hardware=gpu1"], "hardware.device='cuda': torch sees no GPU here"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, overrides, expected):
    code, output = train(tmp_path, "method=mora", "r=4", *overrides)
    assert code != 0
    assert f"mora.train: {expected}" in output
    assert "Traceback" not in output


def test_a_folder_that_another_run_holds_is_refused(tmp_path):
    import fcntl

    folder = folder_of(tmp_path, "method=fft")
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = train(tmp_path, "method=fft")
    assert code != 0
    assert f"{run_id(compose([*SHORT, 'method=fft']))} {IN_USE} (unknown)" in output


def test_several_micro_batches_give_the_loss_of_one(tmp_path):
    curves = []
    for i, micro in enumerate(["size=8", "size=4", "tokens=200"]):
        code, output = train(tmp_path / str(i), "method=fft", f"hardware.micro_batch_{micro}")
        assert code == 0, output
        curves.append([loss for _, loss, _, _ in losses(tmp_path / str(i))])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    assert curves[0] == pytest.approx(curves[2], rel=1e-3)


def test_a_run_leaves_a_model_unless_it_is_told_not_to(tmp_path):
    """As searches of tables are: at scale mid each search of full fine-tuning would leave 6 GB."""
    for save in ("true", "false"):
        code, output = train(tmp_path / save, "method=fft", f"hardware.save_model={save}")
        assert code == 0, output
        (folder,) = (tmp_path / save / "outputs").iterdir()
        assert (folder / "model").is_dir() == (save == "true") == ("next: mora generate" in output)
    one, other = results(tmp_path / "true")[0], results(tmp_path / "false")[0]
    assert one["run_id"] == other["run_id"]
    assert one["metrics"] == other["metrics"]


def test_a_multirun_is_a_run_for_each_value(tmp_path):
    train(tmp_path, "method=mora", "r=2", "task.train.stop_step=3")  # as a fork, in less time; run.py does the other
    code, output = finish(start(tmp_path, "-m", "method=mora", "r=2,4", "task.train.stop_step=3"))
    assert code == 0, output
    assert output.count("already done: ") == 1
    two, four = (result["metrics"]["3"]["value_nll"]["value"] for result in results(tmp_path))
    assert re.search(rf"2 runs:\n  r=2  value_nll {two:.4g}.*\n  r=4  value_nll {four:.4g}", output)
    assert sorted(result["config"]["r"] for result in results(tmp_path)) == [2, 4]
    assert (tmp_path / "outputs/multirun/multirun.yaml").is_file()
