"""The results that are committed: each is what its raw log says, under the name that its configuration gives."""

import json

import pytest

from mora.config import run_id
from mora.config.compose import load
from mora.config.source import ROOT
from mora.train import log

RESULTS = sorted((ROOT / "results/runs").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_result_is_what_its_log_says(path):
    result = json.loads(path.read_text())
    rows = log.read(path.with_suffix(".log.jsonl"))
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(losses) == list(range(1, len(losses) + 1)), "a step is missing, or stands twice"
    measured = {str(row["step"]): {k: v for k, v in row.items() if k != "step"} for row in rows if "loss" not in row}
    assert result["metrics"] == measured
    assert result["final_train_loss"] == losses.get(len(losses))
    if result["status"] == "done":
        assert len(losses) == result["last_step"]
        assert str(result["last_step"]) in measured


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_result_is_found_by_its_configuration_and_of_known_source(path):
    result = json.loads(path.read_text())
    assert run_id(load(result["config"])) == path.stem == result["run_id"]
    assert result["source"]["dirty"] is False
    assert result["config"]["scale"]["name"] in ("lite", "paper")
