"""Training goes on while a checkpoint is written; what depends on its end waits for it."""

import errno
import threading

import pytest
import torch
from tiny_runs import random_batches, tiny_config, tiny_engine

from mora.train import checkpoint, checkpoint_writer, log
from mora.train.checkpoint_writer import CheckpointWriter
from mora.train.loop import Diverged, fit
from mora.train.restart import RunRestarts


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "SMALL", 0)


@pytest.fixture
def slow_disk(monkeypatch):
    """Hold every write until `go` is set, and list the steps whose checkpoints are written."""
    written, go, save = [], threading.Event(), checkpoint.save

    def held(folder, step, state):
        assert go.wait(60)
        written.append(step)
        return save(folder, step, state)

    monkeypatch.setattr(checkpoint, "save", held)
    return written, go


def config_of(steps, every, method="fft", *overrides):
    return tiny_config(
        method, f"task.train.stop_step={steps}", f"task.train.checkpoint_every_steps={every}", *overrides
    )


def test_steps_are_taken_while_a_checkpoint_is_written_and_the_run_ends_after_it(tmp_path, slow_disk):
    written, go = slow_disk
    config, measured = config_of(10, 4, "fft", "task.evaluation.tasks=[]"), []

    def evaluate(done, again):
        measured.append((done, list(written)))
        if done == 7:  # three steps beyond the checkpoint
            go.set()
        return {}

    fit(tiny_engine(config), random_batches(), config, tmp_path, evaluate)
    assert all(there == [] for done, there in measured if done <= 7)
    assert written == [4, 8]
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 8


def test_what_is_written_is_the_state_at_the_call(tmp_path, slow_disk):
    _, go = slow_disk
    config = config_of(3, 2, "fft", "task.evaluation.tasks=[]")
    engine, weights = tiny_engine(config), {}

    def evaluate(done, again):
        if done == 2:
            weights.update({name: master.detach().clone() for name, master in engine.masters.items()})
        if done == 3:
            go.set()
        return {}

    fit(engine, random_batches(), config, tmp_path, evaluate)
    saved = checkpoint.load_latest(tmp_path / "checkpoints")
    assert saved["step"] == 2
    assert all(torch.equal(saved["weights"][name], value) for name, value in weights.items())
    assert any(not torch.equal(saved["weights"][name], master) for name, master in engine.masters.items())


def test_a_restart_waits_for_the_checkpoint_that_holds_its_sums(tmp_path, slow_disk, monkeypatch):
    written, go = slow_disk
    restart = ["method.restart.every_steps=4", "method.restart.warmup_steps=0", "task.evaluation.tasks=[]"]
    config = config_of(8, 3, "relora", *restart)
    threading.Timer(0.5, go.set).start()
    seen = []
    apply = RunRestarts.apply
    monkeypatch.setattr(RunRestarts, "apply", lambda self: (seen.append(list(written)), apply(self))[1])
    fit(tiny_engine(config), random_batches(), config, tmp_path, lambda done, again: {})
    assert seen[0] == [3]


def test_a_write_that_fails_is_said_by_the_next_one_or_at_the_end(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    writer = CheckpointWriter(tmp_path)
    writer.write(1, {})
    with pytest.raises(OSError, match="No space left"):
        writer.write(2, {})
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(tmp_path) as writer:
        writer.write(3, {})


def test_a_run_that_diverges_names_the_checkpoint_that_was_being_written(tmp_path, slow_disk):
    _, go = slow_disk
    config = config_of(6, 4, "fft", "task.evaluation.tasks=[]", "task.train.log_every_steps=5")
    engine = tiny_engine(config)
    step = engine.step
    done = 0

    def ruined(lr, most):
        nonlocal done
        done += 1
        norm = step(lr, most)
        return torch.tensor(float("nan")) if done == 5 else norm

    engine.step = ruined
    threading.Timer(0.5, go.set).start()
    with pytest.raises(Diverged, match="last good checkpoint: step 4"):
        fit(engine, random_batches(), config, tmp_path, lambda done, again: {})
    assert log.read(tmp_path / "log.jsonl")


def test_a_small_checkpoint_is_written_when_write_returns(tmp_path, monkeypatch):
    state = {"weights": {"w": torch.zeros(1000)}, "optimizer": {"w": {"exp_avg": torch.zeros(1000)}}, "log": "text"}
    monkeypatch.setattr(checkpoint_writer, "SMALL", 8001)
    with CheckpointWriter(tmp_path) as writer:
        writer.write(1, state)
        assert checkpoint.latest_step(tmp_path) == 1
        monkeypatch.setattr(checkpoint_writer, "SMALL", 8000)
        held, save = threading.Event(), checkpoint.save
        monkeypatch.setattr(checkpoint, "save", lambda *args: (held.wait(60), save(*args))[1])
        writer.write(2, state)
        assert checkpoint.latest_step(tmp_path) == 1
        held.set()
    assert checkpoint.latest_step(tmp_path) == 2


def test_the_state_is_copied_once_the_checkpoint_before_is_written(tmp_path, slow_disk):
    """Else two copies of the state of a large model, and the model, would be in memory."""
    written, go = slow_disk
    config = config_of(8, 4, "fft", "task.evaluation.tasks=[]")
    engine, copied = tiny_engine(config), []
    state_dict = engine.state_dict
    engine.state_dict = lambda: (copied.append(list(written)), state_dict())[1]
    threading.Timer(0.5, go.set).start()
    fit(engine, random_batches(), config, tmp_path, lambda done, again: {})
    assert copied == [[], [4]]
