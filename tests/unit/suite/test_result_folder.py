"""The results that are committed: each is what its raw log says, under the name that its configuration gives."""

import pytest

from mora.config import run_id
from mora.config.load import load
from mora.config.source import ROOT
from mora.results import of_log, read
from mora.train import log

RESULTS = sorted((ROOT / "results/runs").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_result_is_what_its_log_says(path):
    result = read(path)
    rows = log.read(path.with_suffix(".log.jsonl"))
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(losses) == list(range(1, len(losses) + 1)), "a step is missing, or stands twice"
    assert result.metrics == of_log(rows)
    assert result.final_train_loss == losses.get(len(losses))
    if result.status == "done":
        assert len(losses) == result.last_step
        assert result.last_step in result.metrics


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_result_is_found_by_its_configuration_and_of_known_source(path):
    result = read(path)
    assert run_id(load(result.config)) == path.stem == result.run_id
    assert result.source.dirty is False
    assert result.scale != "smoke"
