import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from mora.errors import ConfigError
from mora.suite import gpus
from mora.suite.gpus import Gpu, GpuSlots, check_named, read_gpus, sharing_at_once, visible


def daemon(folder, python_fails=False):
    """Stand-ins for MPS's control and for Python, which note how they were called."""
    for name, status in (("control", 0), ("python", int(python_fails))):
        script = folder / name
        script.write_text(
            f'#!/bin/sh\necho "{name} $CUDA_VISIBLE_DEVICES $1 $([ "$1" ] || cat)" >> {folder}/calls\n'
            f'[ -d "$CUDA_MPS_PIPE_DIRECTORY" ] && echo why && exit {status}\nexit 9\n'
        )
        script.chmod(0o755)


def test_mps_is_started_tried_and_ended(tmp_path, monkeypatch):
    daemon(tmp_path)
    monkeypatch.setattr(gpus, "MPS", str(tmp_path / "control"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    with sharing_at_once(["3", "1"]) as env:
        assert os.path.isdir(env["CUDA_MPS_PIPE_DIRECTORY"])
        assert "CUDA_VISIBLE_DEVICES" not in env
        assert (tmp_path / "calls").read_text() == "control  -d \npython 3 -c \npython 1 -c \n"
    assert (tmp_path / "calls").read_text().endswith("control   quit\n")
    assert not os.path.exists(env["CUDA_MPS_PIPE_DIRECTORY"])


def test_where_mps_does_not_work_it_is_ended_and_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "MPS", str(tmp_path / "control"))
    with pytest.raises(FileNotFoundError, match="control"), sharing_at_once(["0"]):
        pass
    daemon(tmp_path, python_fails=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(OSError, match=r"NVIDIA MPS does not work here: .*python failed: why"), sharing_at_once(["0"]):
        pass
    assert Path(tmp_path / "calls").read_text().endswith("control   quit\n")


def test_runs_side_by_side_are_spread_over_the_gpus():
    slots, together = GpuSlots(4, ["0", "1"]), Barrier(4)

    def run(_):
        with slots.take(ranks=1) as env:
            together.wait(10)
            return env

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(run, range(4)))
    assert sorted(env["CUDA_VISIBLE_DEVICES"] for env in taken) == ["0", "0", "1", "1"]
    assert {env["MORA_SIDE_BY_SIDE"] for env in taken} == {"2"}


def test_a_place_is_free_again_after_a_run_that_failed():
    slots = GpuSlots(1, ["3"])
    for _ in range(2):
        try:
            with slots.take(ranks=1) as env:
                raise OSError
        except OSError:
            assert env["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_names_of_visible_gpus_may_have_spaces_around_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, GPU-b2 ,")
    assert visible() == ["0", "GPU-b2"]


def test_several_ranks_see_every_gpu_and_without_a_gpu_nothing_is_hidden():
    with GpuSlots(2, ["0", "1"]).take(ranks=2) as env:
        assert "CUDA_VISIBLE_DEVICES" not in env
    with GpuSlots(3, []).take(ranks=1) as env:
        assert env == {"MORA_SIDE_BY_SIDE": "3"}


def test_what_the_user_hid_stays_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == []


@pytest.fixture
def driver(monkeypatch):
    """Three GPUs: one whose utilisation nvidia-smi does not tell, as under MIG, and one that is lost."""
    rows = [
        ["0", "GPU-a1", "81920", "1024", "7"],
        ["1", "GPU-b2", "40960", "0", "[N/A]"],
        ["2", "GPU-c3", "[GPU is lost]", "[GPU is lost]", "[GPU is lost]"],
    ]
    wide = ("index", "uuid", "memory.total", "memory.used", "utilization.gpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "query", lambda *what: [[row[wide.index(name)] for name in what] for row in rows])


def test_what_the_driver_does_not_tell_is_left_out(driver):
    assert read_gpus([]) == [Gpu("0", 80.0, 1.0, [7.0]), Gpu("1", 40.0, 0.0, [])]


@pytest.mark.parametrize(
    ("named", "seen"), [("1", ["1"]), ("GPU-a,GPU-b2", ["0", "1"]), ("", []), ("2", []), (None, ["0", "1"])]
)
def test_gpus_that_are_hidden_are_not_used_unless_they_are_asked_for(driver, monkeypatch, named, seen):
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert [gpu.index for gpu in read_gpus([])] == seen
    assert [gpu.index for gpu in read_gpus(["0"])] == ["0"]


def test_a_gpu_that_is_not_here_is_named(driver):
    check_named(["0", "1"])
    with pytest.raises(ConfigError, match="--gpus 2: no GPU whose memory nvidia-smi shows; there are 0, 1"):
        check_named(["0", "2"])
