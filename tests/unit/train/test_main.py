"""How the worker ends: what it says where a GPU's memory is not enough, and a rank after an error that nobody foresaw."""

import signal
from multiprocessing.util import Finalize

import forked
import pytest
import torch
from tiny_runs import tiny_config

from mora.suite.launch import write_config
from mora.train import __main__ as worker
from mora.train.__main__ import _out_of_memory


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "advice"),
    [
        (16, "null", 1, "micro_batch_size=16; halve it: hardware.micro_batch_size=8 "),
        (100, "25", 1, "micro_batch_size=25; lower it: hardware.micro_batch_size=10 "),
        (100, "null", 4, "micro_batch_size=25; lower it: hardware.micro_batch_size=5 "),
        (16, "1", 1, "micro_batch_size=1; it is the smallest: "),
    ],
)
def test_out_of_memory_names_a_smaller_micro_batch_that_the_config_takes(batch, micro, ranks, advice, tmp_path):
    batch = ["task.data.pairs=100", f"task.train.global_batch_size={batch}", "task.train.epochs=20"]
    hardware = [f"hardware.micro_batch_size={micro}", f"hardware.processes={ranks}"]
    write_config(tiny_config("mora", *batch, *hardware), tmp_path / "config.yaml")
    assert advice in _out_of_memory(tmp_path, torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"))


def fails():
    worker.run = lambda folder: 1 / 0
    Finalize(None, print, ("teardown",), exitpriority=0)  # of a fork's end, as atexit is of another process's


@pytest.mark.parametrize(("env", "torn_down"), [({"RANK": "0"}, False), ({}, True)])
def test_a_rank_ends_at_once_after_an_error_that_nobody_foresaw_and_shows_it(tmp_path, env, torn_down):
    (tmp_path / "config.yaml").touch()
    assert forked.to_their_end(forked.fork(tmp_path, env, prepare=fails)) == [1]
    said = (tmp_path / "output.txt").read_text()
    assert "ZeroDivisionError" in said
    assert ("teardown" in said) == torn_down


def is_stopped():
    worker.run = lambda folder: signal.raise_signal(signal.SIGTERM)
    Finalize(None, print, ("teardown",), exitpriority=0)


@pytest.mark.parametrize("env", [{}, {"RANK": "0"}], ids=["alone", "a rank"])
def test_a_signal_before_training_ends_a_process_in_order_and_a_rank_at_once(tmp_path, env):
    """Killed while it loads, a process leaves its GPU context open, and may harm others under NVIDIA MPS."""
    (tmp_path / "config.yaml").touch()
    (code,) = forked.to_their_end(forked.fork(tmp_path, env, prepare=is_stopped))
    said = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in said
    assert (code, "teardown" in said) == ((-signal.SIGTERM, False) if env else (1, True))
    kept = "mora.train: stopped by a signal; checkpoints and answers so far are kept; start the same run to resume\n"
    assert (kept in said) == (not env)
