"""What a tracker gets: every row once, resumed runs included, and nothing from other ranks."""

import pytest
from tiny_runs import tiny_config

from mora.config import ConfigError
from mora.train.tracker import start_tracker

ROWS = [{"step": s, "loss": 1.0 / s} for s in (1, 2, 3)]


def test_tensorboard_has_every_step_once_also_after_a_resume(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny_config("fft", "tracker=tensorboard")
    start_tracker(config, tmp_path, 0, active=True)(ROWS)
    start_tracker(config, tmp_path, 2, active=True)([{"step": 3, "loss": 9.0}, {"step": 4, "loss": 8.0}])
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Scalars("loss")[2].value == 9.0


def test_wandb_offline_writes_into_the_folder_of_the_run(tmp_path):
    wandb = pytest.importorskip("wandb")
    start_tracker(tiny_config("fft", "tracker=wandb", "tracker.mode=offline"), tmp_path, 0, active=True)(ROWS)
    wandb.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_wandb_without_a_login_is_refused_in_one_line(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def no_key(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr(wandb, "init", no_key)
    with pytest.raises(ConfigError, match=r"^tracker.kind=wandb: No API key configured. Use `wandb login`. Or take"):
        start_tracker(tiny_config("fft", "tracker=wandb"), tmp_path, 0, active=True)


def test_other_ranks_write_nothing(tmp_path):
    start_tracker(tiny_config("fft", "tracker=tensorboard"), tmp_path, 0, active=False)(ROWS)
    assert not list(tmp_path.iterdir())
