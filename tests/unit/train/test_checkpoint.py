import errno
import resource

import pytest
import torch

from mora.errors import DamagedFileError
from mora.train import checkpoint, log


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in (999_998, 999_999, 1_000_000):
        checkpoint.save(tmp_path, step, {"x": torch.tensor(step)})
    assert {p.name for p in tmp_path.iterdir()} == {"step_999999", "step_1000000"}
    assert checkpoint.load_latest(tmp_path)["step"] == checkpoint.latest_step(tmp_path) == 1_000_000


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": torch.tensor(step)})
    damaged = tmp_path / "step_000002" / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step_000002 is damaged"):
        assert checkpoint.load_latest(tmp_path)["step"] == 1


def test_no_space_left_keeps_the_last_good_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="checkpoint of step 2 not written, the last one is kept: No space left"):
        checkpoint.save(tmp_path, 2, {})
    assert checkpoint.load_latest(tmp_path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_a_disk_that_fills_up_while_torch_writes_is_said_to_be_full(tmp_path):
    checkpoint.save(tmp_path, 1, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="checkpoint of step 2 not written, the last one is kept: File too large"):
            checkpoint.save(tmp_path, 2, {"x": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_a_damaged_line_within_the_log_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(DamagedFileError, match=rf"^{path}:2 is damaged: restore it, or do its run again"):
        log.read(path)


def test_the_log_drops_rows_after_the_checkpoint_and_a_torn_last_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    run_log = log.RunLog(path, from_step=2)
    run_log.add(step=3, loss=torch.tensor(0.5))
    assert run_log.flush() == [{"step": 3, "loss": 0.5}]
    assert [row["step"] for row in log.read(path)] == [1, 2, 3]
