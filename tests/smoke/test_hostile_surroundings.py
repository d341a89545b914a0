"""A run where the disk is full, nothing can be written, names are odd, there is no home: said in a line."""

import os
import subprocess
from contextlib import contextmanager

import pytest

from mora.config.run_id import log_path, result_path
from mora.faults.curves import compare
from mora.faults.kills import UUID, Case, run_folder, to_its_end, uninterrupted
from mora.faults.privileges import obey_permissions
from mora.suite.launch import write_config
from mora.train import log

SETTINGS = ("scale=smoke", "method=mora", "r=4", "task.train.warmup_steps=2", "task.train.checkpoint_every_steps=5")
CASE = Case("surroundings", (*UUID, *SETTINGS, "task.train.stop_step=14", "task.evaluation.at_steps=[10]"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return uninterrupted(CASE, tmp_path_factory.mktemp("whole"))


@contextmanager
def small_disk(folder, size_kb):
    """Yields a function that gives the disk another size or makes it read-only."""
    folder.mkdir(parents=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield lambda option: subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def started(folder):
    """What the run says, outside of its own folder, which may be full; and whether it ended well."""
    config = CASE.config(folder)
    own = run_folder(folder, config)
    said = folder / "said.txt"
    said.touch()
    if not (own / "output.txt").is_symlink():
        (own / "output.txt").symlink_to(said)
    before = len(said.read_text())
    to_its_end(CASE, folder, config)
    return said.read_text()[before:], result_path(config).is_file()


def assert_whole(folder, whole):
    rows = log.read(log_path(CASE.config(folder)))
    assert compare(rows, whole.rows, ended=True).equal(0.0)


@pytest.mark.parametrize("size_kb", [24, 120])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(tmp_path, whole, size_kb):
    with small_disk(run_folder(tmp_path, CASE.config(tmp_path)), size_kb) as make:
        said, ended = started(tmp_path)
        assert not ended
        assert "No space left on device" in said
        assert "Traceback" not in said
        make("size=50m")
        said, ended = started(tmp_path)
        assert ended, said
        assert_whole(tmp_path, whole)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    with small_disk(run_folder(tmp_path, CASE.config(tmp_path)), 4000) as make:
        own = run_folder(tmp_path, CASE.config(tmp_path))
        (tmp_path / "said.txt").touch()
        (own / "output.txt").symlink_to(tmp_path / "said.txt")
        write_config(CASE.config(tmp_path), own / "config.yaml")
        make("ro")
        said, ended = started(tmp_path)
    assert not ended
    assert "mora.train: [Errno 30] Read-only file system" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("home", ["/proc/no home", "read-only home"])
def test_odd_names_and_a_home_that_cannot_be_written_change_nothing(tmp_path, whole, home):
    folder = tmp_path / "ein Ordner, ä 日本 $HOME 'x'"
    folder.mkdir()
    if not home.startswith("/"):
        (tmp_path / home).mkdir(mode=0o555)
        home = str(tmp_path / home)
    said = to_its_end(CASE, folder, CASE.config(folder), obey_permissions, HOME=home)
    assert result_path(CASE.config(folder)).is_file(), said
    assert_whole(folder, whole)


def test_files_from_the_future_are_read_as_others(tmp_path, whole):
    config = CASE.config(tmp_path)
    to_its_end(CASE, tmp_path, config)
    result_path(config).unlink()
    for path in run_folder(tmp_path, config).rglob("*"):
        os.utime(path, (4e9, 4e9))
    to_its_end(CASE, tmp_path, config)
    assert_whole(tmp_path, whole)
