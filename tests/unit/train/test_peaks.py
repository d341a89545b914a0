"""What training allocates is told apart from what scoring does."""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import tiny_config

from mora.train.memory import Peaks
from mora.train.scoring import Scoring


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose peak is set by hand, and falls to 10 bytes when it is reset."""
    gpu = SimpleNamespace(peak=50, reset=lambda: setattr(gpu, "peak", 10))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: gpu.peak)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2 * gpu.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", gpu.reset)
    return gpu


def test_the_peak_of_training_leaves_out_what_loading_and_scoring_took(gpu, tmp_path, monkeypatch):
    def scores(*_):
        gpu.peak = 40
        return {"loss": 1.0}

    monkeypatch.setattr(Scoring, "_scores", scores)
    config = tiny_config("mora", "task.evaluation.loss_every_steps=2")
    scoring, peaks = Scoring(config, SimpleNamespace(pairs=[]), None, 0, tmp_path), Peaks(torch.device("cuda"))
    for step, allocated in enumerate((20, 30, 25), 1):
        gpu.peak = max(gpu.peak, allocated)
        assert scoring(None, peaks, step, False) == ({"loss": 1.0} if step == 2 else {})
    gpu.peak = 35  # saving
    peaks.end_stretch(training=False)
    assert peaks.facts() == {
        "peak_memory_bytes": 40,
        "train_peak_memory_bytes": 30,
        "reserved_memory_bytes": 80,
    }


def test_a_run_that_is_resumed_to_be_scored_alone_has_no_peak_of_training(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(Scoring, "_scores", lambda *_: {"loss": 1.0})
    config = tiny_config("mora", "task.evaluation.loss_every_steps=2")
    scoring, peaks = Scoring(config, SimpleNamespace(pairs=[]), None, 0, tmp_path), Peaks(torch.device("cuda"))
    gpu.peak = 20  # the checkpoint is loaded
    assert scoring(None, peaks, config.last_step, True) == {"loss": 1.0}
    assert peaks.facts()["train_peak_memory_bytes"] is None


def test_a_cpu_has_no_peaks():
    peaks = Peaks(torch.device("cpu"))
    peaks.end_stretch(training=True)
    assert set(peaks.facts().values()) == {None}
