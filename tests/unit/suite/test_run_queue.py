"""The queue of runs: order, memory, time, failures and what it leaves behind. Runs and GPUs are stood in for."""

import importlib.util
import json
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat

import pytest
from made_up import write

from mora.config import ConfigError, run_id, source
from mora.config.cached_composition import compose_cached as compose
from mora.config.run_id import result_path
from mora.config.source import ROOT
from mora.suite import launch, like_runs, queue_file

SMOKE = "task=uuid scale=smoke method=lora r=8"
ON = {"device": "NVIDIA H200"}
LINES = [f"{SMOKE} seed={seed}" for seed in range(4)]


def load():
    spec = importlib.util.spec_from_file_location("run_queue", ROOT / "scripts" / "run_queue.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_queue"] = module
    spec.loader.exec_module(module)
    return module


class Process:
    """A run that ends at the second look, with a result unless its line is one of `failing`; `hanging` ones go on until
    they are stopped."""

    started: list[str]
    failing: set[str]
    hanging: set[str]

    def __init__(self, command, env, **_):
        self.line, self.gpu, self.looks, self.returncode = " ".join(command[2:]), env["CUDA_VISIBLE_DEVICES"], 0, None
        Process.started.append(self.line)

    def poll(self):
        self.looks += 1
        if self.returncode is None and self.looks > 1 and self.line not in Process.hanging:
            self.returncode = 1 if self.line in Process.failing else 0
            if self.returncode == 0:
                write(
                    compose(self.line.split()),
                    {"value_nll": 1.0},
                    run_id="x",
                    wall_s=3.0,
                    hardware={"peak_memory_bytes": 2**30},
                )
        return self.returncode

    def terminate(self):
        assert self.returncode is None, "asked again, a run would not finish saving"
        self.returncode = 130


def no_plan(*_):
    raise ValueError("a shape that is not known: --unknown-gib is claimed")


@pytest.fixture
def queue(tmp_path, monkeypatch):
    module = load()
    Process.started, Process.failing, Process.hanging = [], set(), set()
    monkeypatch.delenv("MORA_OUTPUT_DIR", raising=False)  # a machine's own has runs of these names, with their logs
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "POLL_S", 0.0)
    monkeypatch.setattr(module, "SETTLING_S", 0.0)
    monkeypatch.setattr(module.subprocess, "Popen", Process)
    monkeypatch.setattr(like_runs, "memory", no_plan)
    monkeypatch.setattr(like_runs, "token_time", no_plan)
    monkeypatch.setattr(module, "gpu_name", lambda index: "NVIDIA H200")
    module.totals = {"0": 80.0}
    monkeypatch.setattr(
        module, "read_gpus", lambda wanted: [module.Gpu(i, total, 0.0, [50.0]) for i, total in module.totals.items()]
    )

    def run(lines, minutes=60.0, jobs=6):
        file = tmp_path / "queue.txt"
        file.write_text("\n".join(lines) + "\n")
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        options = types.SimpleNamespace(queue=file, minutes=minutes, out=out, gpus=[], jobs=jobs, unknown_gib=24.0)
        code = module.Queue(options).run()
        return code, [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]

    run.module = module
    return run


def events(journal, kind):
    return [event for event in journal if event["event"] == kind]


def test_runs_start_in_order_as_far_as_memory_allows(queue):
    code, journal = queue(LINES)
    assert (code, Process.started) == (0, LINES)
    before_the_first_end = journal[: [e["event"] for e in journal].index("end")]
    assert len(events(before_the_first_end, "start")) == 3, "24 GiB each, of 80"
    assert events(journal, "sum")[0] | {"held_gpu_min": 0, "at": 0, "run_min": 0} == {
        "event": "sum", "at": 0, "held_gpu_min": 0, "busy_percent": 50.0, "left": [], "failed": [], "run_min": 0, "ended": 4,
    }  # fmt: skip


def test_a_line_may_claim_memory_and_what_like_runs_took_is_claimed_by_the_next(queue):
    _, journal = queue([f"[70 GiB] {LINES[0]}", *LINES[1:]])
    claims = [event["claim_gib"] for event in events(journal, "start")]
    assert claims == [70.0, *[round(1.1 * 1.33 + 1.0, 1)] * 3], "one ended with 1 GiB allocated at its peak"


def test_runs_get_the_environment_in_which_they_share_a_gpu(tmp_path, monkeypatch, queue):
    module, seen = queue.module, []

    @contextmanager
    def sharing(indices):
        assert indices == ["0"]
        yield {"CUDA_MPS_PIPE_DIRECTORY": "there"}
        seen.append("ended")

    class Looking(Process):
        def __init__(self, command, env, **options):
            seen.append(env.get("CUDA_MPS_PIPE_DIRECTORY"))
            assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID", "a GPU's index is nvidia-smi's"
            super().__init__(command, env, **options)

    monkeypatch.setattr(module.subprocess, "Popen", Looking)
    monkeypatch.setattr(module.gpus, "sharing_at_once", sharing)
    file, out = tmp_path / "queue.txt", tmp_path / "out"
    file.write_text("\n".join(LINES[:2]))
    monkeypatch.setattr(sys, "argv", ["run_queue.py", str(file), "--out", str(out), "--mps"])
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    assert module.main() == 0
    assert seen == ["there", "there", "ended"]

    def failing(indices):
        raise OSError("NVIDIA MPS does not work here: why")

    monkeypatch.setattr(module.gpus, "sharing_at_once", failing)
    file.write_text(LINES[2])
    assert module.main() == 0
    assert seen[3:] == [None]
    assert "NVIDIA MPS does not work here: why" in (out / "journal.jsonl").read_text()


def test_every_gpu_is_used(queue):
    queue.module.totals = {"0": 30.0, "1": 30.0}
    _, journal = queue(LINES[:2])
    assert [event["gpu"] for event in events(journal, "start")] == ["0", "1"]


def test_a_gpu_that_the_driver_does_not_report_keeps_its_last_numbers(queue, monkeypatch):
    looks = iter([[queue.module.Gpu("0", 80.0, 0.0, [])], *[[]] * 100])
    monkeypatch.setattr(queue.module, "read_gpus", lambda wanted: next(looks))
    code, journal = queue(LINES[:2])
    assert (code, len(events(journal, "end"))) == (0, 2)
    assert events(journal, "sum")[0]["busy_percent"] is None


def test_a_damaged_result_is_named_and_counts_as_failed(queue):
    path = result_path(compose(LINES[0].split()))
    path.parent.mkdir(parents=True)
    path.write_text("{")
    code, journal = queue(LINES[:2])
    assert (code, Process.started) == (1, LINES[1:2])
    (wrong,) = events(journal, "wrong")
    assert wrong["what"].startswith(f"{path} is damaged")
    assert events(journal, "sum")[0]["failed"] == [path.stem]


def started_on_two_gpus(queue, claims):
    """Return seed and GPU of the runs, which claim so many GiB, in the order of their starts; GPUs of 80 and 60 GiB."""
    queue.module.totals = {"0": 80.0, "1": 60.0}
    _, journal = queue([f"[{claim} GiB] {SMOKE} seed={seed}" for seed, claim in enumerate(claims)])
    return [(re.search(r"-s(\d)", event["run"])[1], event["gpu"]) for event in events(journal, "start")]


def test_a_run_that_fits_nowhere_keeps_one_gpu_and_later_lines_have_the_others(queue):
    started = started_on_two_gpus(queue, [40, 40, 70, 15, 15])
    assert started[:3] == [("0", "0"), ("1", "1"), ("3", "1")]
    assert started[3] == ("2", "0"), "seed 4 would fit on GPU 0, too, but that is kept for seed 2"


def test_several_runs_that_fit_nowhere_keep_one_gpu_together(queue):
    started = started_on_two_gpus(queue, [40, 40, 70, 70, 15])
    assert started[:3] == [("0", "0"), ("1", "1"), ("4", "1")]
    assert [seed for seed, _ in started[3:]] == ["2", "3"]


def test_wait_holds_back_what_is_below_it(queue):
    _, journal = queue([LINES[0], "@wait", LINES[1], "# a comment", ""])
    assert [event["event"] for event in journal] == ["queue", "start", "end", "start", "end", "sum"]


def test_a_failure_is_tried_once_more_with_twice_the_memory(queue):
    Process.failing = {LINES[0]}
    code, journal = queue(LINES[:2])
    name = run_id(compose(LINES[0].split()))
    assert [e["claim_gib"] for e in events(journal, "start") if e["run"] == name] == [
        24.0,
        pytest.approx(2 * (1.1 * 1.33 + 1.0), abs=0.1),
    ]
    assert code == 1
    (summed,) = events(journal, "sum")
    assert (summed["ended"], summed["failed"], summed["left"]) == (1, [name], [])


def test_a_result_that_does_not_count_is_made_again(queue):
    write(compose(LINES[0].split()), {"value_nll": 1.0}, status="failed")
    queue(LINES[:2])
    assert Process.started == LINES[:2]


def test_what_has_a_result_is_not_begun_again(queue):
    write(compose(LINES[0].split()), {"value_nll": 1.0})
    queue(LINES[:2])
    assert Process.started == [LINES[1]]


def test_a_run_of_two_lines_is_run_once(queue):
    code, _ = queue([LINES[0], LINES[0] + " tracker=none", LINES[1]])
    assert (code, Process.started) == (0, LINES[:2])


def test_when_the_time_is_over_nothing_starts_and_what_is_left_is_named(queue):
    code, journal = queue(LINES[:1], minutes=0.0)
    assert code == 1
    assert events(journal, "start") == []
    assert events(journal, "sum")[0]["left"] == [run_id(compose(LINES[0].split()))]


def test_what_runs_when_the_time_is_over_is_asked_to_stop(queue, monkeypatch):
    Process.hanging = {LINES[0]}
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(queue.module.time, "monotonic", lambda: float(next(clock)))
    code, journal = queue(LINES[:1], minutes=2)
    assert code == 1
    assert [event["event"] for event in journal] == ["queue", "start", "stopping", "end", "sum"]
    assert journal[3]["code"] == 130
    assert journal[4]["run_min"]["not ended"] > 0


class Logging(Process):
    """A run that logs the next of its `steps`, if there is one, whenever it is looked at, and does not end before."""

    steps: dict[str, Iterator[int]]

    def poll(self):
        step = next(Logging.steps.get(self.line, iter(())), None)
        if step is None:
            return super().poll()
        log(self.line, step)
        return self.returncode


def log(line, step):
    path = launch.run_folder(compose(line.split())) / "log.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (1, step)))


@pytest.fixture
def logging(queue, tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(queue.module.subprocess, "Popen", Logging)
    Logging.steps = {}
    return Logging


def test_a_run_that_has_trained_has_the_last_minute_for_its_scores(queue, logging, monkeypatch):
    trained, training, again = (compose(line.split()) for line in LINES[:3])
    logging.steps = {LINES[0]: repeat(trained.last_step), LINES[1]: repeat(training.last_step - 1)}
    Process.hanging = {LINES[2]}
    log(LINES[2], again.last_step)  # of an earlier run, whose result does not count; this one has not begun to log
    clock = iter(range(10**6))
    monkeypatch.setattr(queue.module.time, "monotonic", lambda: float(next(clock)))
    _, journal = queue(LINES[:3], minutes=3)
    (stopping,), ends = events(journal, "stopping"), events(journal, "end")
    assert stopping["running"] == [run_id(training), run_id(again)]
    assert [end["run"] for end in ends] == [run_id(training), run_id(again), run_id(trained)]
    assert stopping["at"] < ends[1]["at"] < stopping["at"] + 20 < ends[2]["at"] < 180


def known(queue, **values):
    """Commit a result that tells what LINES take."""
    folder = queue.module.ROOT / "results" / "runs"
    folder.mkdir(parents=True)
    write(compose(LINES[0].split()), {"value_nll": 1.0}, run_id="x", hardware=ON, **values).rename(folder / "x.json")


def test_a_run_that_cannot_end_in_time_is_not_started(queue):
    known(queue, wall_s=600.0)
    code, journal = queue(LINES[:1], minutes=5)
    assert code == 1
    assert Process.started == []
    assert events(journal, "sum")[0]["left"] == [run_id(compose(LINES[0].split()))]


def test_two_runs_that_only_one_by_one_can_end_in_time_are_not_run_side_by_side(queue):
    known(queue, wall_s=200.0)
    _, journal = queue(LINES[:2], minutes=5)
    assert [event["event"] for event in journal] == ["queue", "start", "end", "start", "end", "sum"]


@pytest.mark.parametrize(
    ("share", "training_s", "scoring_s", "together"),
    [(0.9, 200.0, 0.0, True), (1.0, 200.0, 20.0, True), (1.0, 130.0, 120.0, False)],
)
def test_a_run_starts_beside_one_if_it_can_end_all_the_same(share, training_s, scoring_s, together, queue, logging):
    """There are 300 s. The other one still trains a tenth, or is scored."""
    known(queue, wall_s=training_s + scoring_s, scoring_s=scoring_s)
    steps = int(share * compose(LINES[0].split()).last_step)
    logging.steps = {LINES[0]: iter([1, steps, steps])}
    _, journal = queue(LINES[:2], minutes=5)
    order = ["start", "start", "end", "end"] if together else ["start", "end", "start", "end"]
    assert [event["event"] for event in journal] == ["queue", *order, "sum"]


def test_a_wrong_edit_is_said_once_and_what_was_read_before_goes_on(queue, monkeypatch):
    read, calls = queue_file.read, iter(range(10**6))

    def half_written(path):
        if 0 < next(calls) < 4:
            raise ConfigError("queue.txt, line 2: there is no such method")
        return read(path)

    monkeypatch.setattr(queue_file, "read", half_written)
    code, journal = queue(LINES)
    assert (code, Process.started) == (0, LINES)
    assert [event["what"] for event in events(journal, "wrong")] == ["queue.txt, line 2: there is no such method"]


NOT_LINES = [
    (b'task=uuid tracker="none', "line 2: No closing quotation"),
    ("task=uuid # \u00e9".encode("latin-1"), "line 2: not UTF-8, which the file must be"),
]


@pytest.mark.parametrize(("added", "why"), NOT_LINES)
def test_a_line_that_is_none_ends_no_running_queue(added, why, queue, tmp_path, monkeypatch):
    file = tmp_path / "queue.txt"

    class Adding(Process):
        def __init__(self, *args, **options):
            file.write_bytes(f"{LINES[0]}\n".encode() + added)
            super().__init__(*args, **options)

    monkeypatch.setattr(queue.module.subprocess, "Popen", Adding)
    code, journal = queue(LINES[:1])
    assert (code, Process.started) == (0, LINES[:1])
    (wrong,) = events(journal, "wrong")
    assert wrong["what"].startswith(f"{file}, {why}")
    assert events(journal, "sum")[0]["ended"] == 1


@pytest.mark.parametrize(("added", "why"), NOT_LINES)
def test_a_line_that_is_none_is_one_line_at_the_start(added, why, queue, tmp_path, monkeypatch):
    file = tmp_path / "queue.txt"
    file.write_bytes(f"{LINES[0]}\n".encode() + added)
    monkeypatch.setattr(sys, "argv", ["run_queue.py", str(file), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as refused:
        queue.module.main()
    assert str(refused.value).startswith(f"run_queue.py: {file}, {why}")
    assert "\n" not in str(refused.value)
    assert Process.started == []


def test_a_full_disk_ends_no_queue(queue, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "x.json")

    monkeypatch.setattr(queue.module.shutil, "copy", full)
    code, journal = queue(LINES[:1])
    assert (code, Process.started) == (0, LINES[:1])
    assert [event["what"] for event in events(journal, "wrong")] == ["[Errno 28] No space left on device: 'x.json'"]


def test_a_queue_goes_on_where_its_journal_cannot_be_written(queue, capsys):
    (queue.module.ROOT / "out" / "journal.jsonl").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):  # of this test, which reads it
        queue(LINES[:1])
    assert Process.started == LINES[:1]
    assert "run_queue.py: the journal is not written: [Errno 21] Is a directory" in capsys.readouterr().err
