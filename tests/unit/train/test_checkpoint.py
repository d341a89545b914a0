import errno
import hashlib
import os
import resource
import shutil
import zipfile

import pytest
import torch

from mora.errors import DamagedFileError
from mora.train import checkpoint, log


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in (999_998, 999_999, 1_000_000):
        checkpoint.save(tmp_path, step, {"x": torch.tensor(step)})
    assert {p.name for p in tmp_path.iterdir()} == {"step_999999", "step_1000000"}
    assert checkpoint.load_latest(tmp_path)["step"] == checkpoint.latest_step(tmp_path) == 1_000_000


def test_only_the_newest_is_kept_where_a_third_has_no_room(tmp_path, monkeypatch):
    """Two checkpoints of full fine-tuning and a third that is being written filled a disk of 64 GiB at 1.5B."""
    free = shutil.disk_usage(tmp_path)
    checkpoint.save(tmp_path, 1, {"x": torch.zeros(1000)})
    for room, kept in ((10_000, ["step_000001", "step_000002"]), (100, ["step_000003"])):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, room=room: free._replace(free=room))
        step = 2 if room == 10_000 else 3
        checkpoint.save(tmp_path, step, {"x": torch.zeros(1000)})
        assert sorted(p.name for p in tmp_path.iterdir()) == kept
    assert checkpoint.load_latest(tmp_path)["step"] == 3


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": torch.tensor(step)})
    damaged = tmp_path / "step_000002" / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert checkpoint.load_latest(tmp_path)["step"] == 1
    assert "step_000002 is damaged (its sha256 does not match): using the one before" in capsys.readouterr().err


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


class Planted:
    def __reduce__(self):
        return os.mkdir, (os.environ["PLANTED"],)


def test_a_checkpoint_that_runs_code_is_refused_though_its_digest_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLANTED", str(tmp_path / "ran"))
    checkpoint.save(tmp_path / "saved", 1, {"x": torch.tensor(1)})
    planted = checkpoint.save(tmp_path / "saved", 2, {"x": Planted()})
    assert checkpoint.load_latest(tmp_path / "saved")["step"] == 1
    assert not (tmp_path / "ran").exists(), "the pickle was run"
    assert f"checkpoint {planted} is damaged (Weights only load failed" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no folder", "no digest", "a folder", "empty", "of another step", "a list"])
def test_whatever_lies_in_place_of_a_checkpoint_is_passed_over(tmp_path, damage, capsys):
    checkpoint.save(tmp_path, 1, {"x": torch.tensor(1)})
    path = checkpoint.save(tmp_path, 2, {"x": torch.tensor(2)})
    state = path / "state.pt"
    if damage == "no folder":
        shutil.rmtree(path)
        path.write_text("a file")
    elif damage == "no digest":
        (path / "sha256").unlink()
    elif damage == "a folder":
        state.unlink()
        state.mkdir()
    else:
        content = {"empty": b"", "of another step": (tmp_path / "step_000001" / "state.pt").read_bytes(), "a list": b""}
        state.write_bytes(content[damage])
        if damage == "a list":
            torch.save([1], state)
        (path / "sha256").write_text(hashlib.sha256(state.read_bytes()).hexdigest())
    (tmp_path / "step_of_mine").mkdir()
    assert checkpoint.load_latest(tmp_path)["step"] == 1
    assert "step_000002 is damaged (" in capsys.readouterr().err
    checkpoint.save(tmp_path, 3, {})
    assert (tmp_path / "step_of_mine").is_dir(), "nothing else is touched"


@pytest.mark.parametrize("line", ['{"ste', "[1]", "{}", '{"step": "1"}', "\xff"])
def test_a_damaged_line_within_the_log_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'.encode("latin-1"))
    with pytest.raises(DamagedFileError, match=rf"^{path}:2 is damaged: restore it, or repeat the run"):
        log.read(path)


def test_a_torn_last_line_is_left_out_and_a_resumed_log_begins_with_what_the_checkpoint_holds(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    assert [row["step"] for row in log.read(path)] == [1, 2, 3]
    run_log = log.RunLog(path, '{"step": 1}\n{"step": 2}\n')
    run_log.add(step=3, loss=torch.tensor(0.5))
    assert run_log.flush() == [{"step": 3, "loss": 0.5}]
    assert [row["step"] for row in log.read(path)] == [1, 2, 3]
    assert path.read_text() == run_log.text


@pytest.mark.parametrize("change", ["a row of another process", "removed", "replaced"])
def test_a_log_that_another_process_changes_ends_the_run(change, tmp_path):
    run_log = log.RunLog(tmp_path / "log.jsonl", '{"step": 1}\n')
    run_log.add(step=2)
    run_log.flush()
    if change == "a row of another process":
        other = (tmp_path / "log.jsonl").read_text() + '{"step": 3}\n'
    elif change == "replaced":
        other = ""
    (tmp_path / "log.jsonl").unlink()
    if change != "removed":
        (tmp_path / "log.jsonl").write_text(other)
    run_log.add(step=3)
    with pytest.raises(DamagedFileError, match=r"bytes, where this run wrote 24: another process works in the folder"):
        run_log.flush()


def test_saving_computes_no_crc32_and_leaves_torchs_option_as_it_was(tmp_path):
    # CRC-32 takes five times as long as writing, and the sha256 is computed anyway.
    path = checkpoint.save(tmp_path, 7, {"w": torch.arange(1000.0)})
    with pytest.raises(zipfile.BadZipFile, match="CRC"), zipfile.ZipFile(path / "state.pt") as archive:
        archive.read(next(name for name in archive.namelist() if name.endswith("data/0")))
    assert torch.serialization.get_crc32_options()
    assert torch.equal(checkpoint.load_latest(tmp_path)["w"], torch.arange(1000.0))
