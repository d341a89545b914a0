"""What a tracker gets: every row once, resumed runs included, and nothing from other ranks."""

import os

import forked
import pytest
from tiny_runs import tiny_config

from mora.config import ConfigError
from mora.train.tracker import start_tracker

# A name that is not in the settings, which W&B's file holds too.
ROWS = [{"step": s, "loss_found": 1.0 / s} for s in (1, 2, 3)]


def track(rows, folder, *overrides, from_step=0, active=True):
    with start_tracker(tiny_config("fft", *overrides), folder, from_step, active) as write:
        write(rows)


def test_tensorboard_has_every_step_once_also_after_a_resume(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    track(ROWS, tmp_path, "tracker=tensorboard")
    track(
        [{"step": 3, "loss_found": 9.0}, {"step": 4, "loss_found": 8.0}], tmp_path, "tracker=tensorboard", from_step=2
    )
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss_found")] == [1, 2, 3, 4]
    assert events.Scalars("loss_found")[2].value == 9.0


def rank(folder):
    evaluation = {"step": 2, "validation_loss": 0.5}  # of an earlier step, as a resumed run's first may be
    track([*ROWS, evaluation], folder, "tracker=wandb", "tracker.mode=offline")
    os._exit(0)  # as a rank does


def test_wandb_offline_has_the_rows_of_a_rank_that_ends_without_teardown(tmp_path):
    pytest.importorskip("wandb")
    process = forked.context.Process(target=rank, args=(tmp_path,))
    process.start()
    assert forked.to_their_end([process]) == [0]
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    written = file.read_bytes()
    assert b"loss_found" in written
    assert b"validation_loss" in written


def test_wandb_without_a_login_is_refused_in_one_line(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def no_key(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr(wandb, "init", no_key)
    with pytest.raises(ConfigError, match=r"^tracker.kind=wandb: No API key configured. Use `wandb login`. Or use"):
        track(ROWS, tmp_path, "tracker=wandb")


def test_other_ranks_write_nothing(tmp_path):
    track(ROWS, tmp_path, "tracker=tensorboard", active=False)
    assert not list(tmp_path.iterdir())
