"""What is said before a run trains that could not be scored."""

from types import SimpleNamespace

import pytest
from tiny_runs import tiny_config

from mora.errors import DataError
from mora.train.scoring import Scoring


def test_a_set_that_scale_smoke_does_not_make_up_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path / "data"))  # which it would be told to set
    config = tiny_config("mora", "task.evaluation.tasks=[biomed_pubmedqa_local]")
    scoring = Scoring(config, SimpleNamespace(pairs=[]), None, 0, tmp_path)
    with pytest.raises(DataError, match=r"made-up rows alone, never those of MORA_DATA_DIR: .*/ori_pqal\.json"):
        scoring.check()
