"""Every task trains: on rows made on the spot, and on real rows where MORA_DATA_DIR has them."""

import json
import os

import pytest
import yaml

from mora.config import compose
from mora.evaluate import harness
from mora.train import log
from mora.train.worker import run

TASKS = ["tulu2", "metamath", "biomed", "finance", "c4"]
# Real rows, few of them, for the tiny model.
REAL = {
    "tulu2": ["task.data.corpus.local.0.max_rows=80"],
    "metamath": ["task.data.corpus.local.0.max_rows=60", "task.data.corpus.local.1.max_rows=60"],
    "biomed": ["task.data.texts.local.0.max_rows=20", "task.data.instructions.local.0.max_rows=50"],
    "finance": ["task.data.texts.local.0.max_rows=40", "task.data.instructions.local.0.max_rows=50"],
    "c4": ["task.data.corpus.local.0.max_rows=20"],
}


def trained(tmp_path, monkeypatch, overrides):
    monkeypatch.setenv("MORA_CACHE_DIR", str(tmp_path / "cache"))
    config = compose([*overrides, f"scale.results_dir={tmp_path}/results", "hardware=cpu"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    result = json.loads(run(tmp_path / "run").read_text())
    (path,) = (tmp_path / "results").glob("*.log.jsonl")
    losses = [row["loss"] for row in log.read(path) if "loss" in row]
    assert result["status"] == "done"
    assert len(losses) == result["last_step"] <= result["total_steps"]
    assert 0 < result["metrics"][str(result["last_step"])]["validation_loss"]["value"] < 10
    return result, losses


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", [["method=remora", "r=8"], ["method=none"]], ids=["remora", "none"])
def test_every_task_runs_at_smoke_scale(tmp_path, monkeypatch, task, method):
    if task == "metamath":  # whose answers an untrained model never ends: of 256 tokens, not of 2,048
        monkeypatch.setattr(harness, "positions", lambda model: 512)
    result, losses = trained(tmp_path, monkeypatch, [f"task={task}", "scale=smoke", *method])
    assert result["data"]["report"]["sequences"] > 0
    if method != ["method=none"]:
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", [["method=fft"], ["method=remora", "r=8"]], ids=["fft", "remora"])
def test_pretraining_in_bf16_is_scored_at_its_end(tmp_path, monkeypatch, method):
    small = [
        "scale.precision=bf16",
        "task.train.global_batch_size=4",
    ]  # a CPU without bf16 takes seconds per step of 16
    result, _ = trained(tmp_path, monkeypatch, ["task=c4", "scale=smoke", *small, *method])
    last = result["metrics"][str(result["last_step"])]
    assert last["c4_perplexity.score"]["value"] > 1


def test_packed_conversations_train_as_well(tmp_path, monkeypatch):
    overrides = [
        "task=tulu2",
        "scale=smoke",
        "method=lora",
        "r=4",
        "task.data.packing=isolated",
        "task.data.max_length=512",
    ]
    result, losses = trained(tmp_path, monkeypatch, [*overrides, "task.train.global_batch_size=4"])
    assert result["total_steps"] == len(losses) < 16
    assert losses[-1] < losses[0]


@pytest.mark.skipif(not os.environ.get("MORA_DATA_DIR"), reason="MORA_DATA_DIR is not set")
@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_on_real_rows(tmp_path, monkeypatch, task):
    small = ["model=tiny", "scale.precision=fp32", "task.data.max_length=512", "task.train.global_batch_size=4"]
    small += ["hardware.micro_batch_size=2"]
    small += ["task.data.validation_sequences=4", "task.evaluation.tasks=[]"]  # scored in full elsewhere
    steps = ["task.train.warmup_steps=1", "task.train.stop_step=6"]
    overrides = [f"task={task}", "scale=lite", "method=mora", "r=8", "lr=1e-2", *small, *steps, *REAL[task]]
    result, losses = trained(tmp_path, monkeypatch, overrides)
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    sources = [source for group in result["data"]["fingerprints"]["sources"].values() for source in group]
    assert all(len(digest) == 64 for source in sources for digest in source["sha256"].values())


def test_a_schedule_that_does_not_fit_the_data_is_refused(tmp_path, monkeypatch):
    from mora.errors import ConfigError

    base = ["task=metamath", "scale=smoke", "method=mora", "r=8"]
    with pytest.raises(ConfigError, match=r"task.train.warmup_steps=16: the run has only 16 steps"):
        trained(tmp_path, monkeypatch, [*base, "task.train.warmup_steps=16"])
