"""The plan is held against steps measured on a CPU, and against those that were measured on GPUs."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from mora.bench import __main__ as bench
from mora.bench import plan, render
from mora.config.seal import unsealed
from mora.planner import speed
from mora.results import write_sealed


def test_the_plan_is_held_against_real_steps_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    bench.main(["plan", "--smoke", "--only", "lora", "--out", str(tmp_path)])
    (some,) = tmp_path.glob("plan-smoke-lora-*.json")  # named after its cases
    path = some.rename(tmp_path / some.name.replace("-lora", ""))
    first = json.loads(path.read_text())["rows"]
    bench.main(["plan", "--smoke", "--out", str(tmp_path)])
    result = json.loads(path.read_text())
    assert result["rows"][:2] == first
    write_sealed(path, unsealed(result) | {"source": {**result["source"], "fingerprint": "another"}})
    bench.main(["plan", "--smoke", "--out", str(tmp_path)])
    again = json.loads(path.read_text())
    assert [a["step_s"] != b["step_s"] for a, b in zip(again["rows"], result["rows"], strict=True)] == [True] * 4
    assert [row["name"] for row in result["rows"]] == [case.name for case in plan.cases(smoke=True)]
    assert all("error" not in row and min(row["step_s"]) > 0 for row in result["rows"])
    monkeypatch.setattr(speed, "_real_steps", lambda: [speed.of_row(row, "CPU") for row in result["rows"]])
    for row in result["rows"]:
        said = plan.predict(row)
        assert not said.source.endswith(f", {row['name']}"), "a case is predicted from the others"
        assert 0.1 < said.step_s / min(row["step_s"]) < 10
    checkpointed = [plan.predict(row).peak_bytes for row in result["rows"]]
    assert checkpointed[1] < checkpointed[0]
    assert render.tables(result).count("\n| tiny ") == 4


def test_steps_that_were_not_steady_say_so(tmp_path):
    bench.main(["plan", "--smoke", "--only", "lora r=4 2 x 4 x 32", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("plan-smoke-*.json")
    result = json.loads(path.read_text())
    row, *_ = result["rows"]
    result["rows"] = [row]  # the times of others are real
    row["step_s"] = [1.0, 1.0, 1.09, 1.0]
    assert "unsteady" not in render.tables(result) + plan._line(row)
    row["step_s"] = [1.0, 1.0, 1.11, 1.0]
    assert "1.0000 (unsteady: 1.0000 to 1.1100)" in render.tables(result)
    assert plan._line(row).endswith(plan.UNSTEADY)


def test_what_a_graphs_pool_keeps_counts_as_taken(monkeypatch):
    segments = [
        {"segment_pool_id": (0, 0), "total_size": 100, "allocated_size": 10},
        {"segment_pool_id": (0, 1), "total_size": 50, "allocated_size": 20},
        {"segment_pool_id": (0, 1), "total_size": 5, "allocated_size": 0},
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert plan._idle_in_graphs() == 35


def test_a_case_that_fails_is_a_row_and_is_tried_again(tmp_path, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(plan, "_steps", fails)
    bench.main(["plan", "--smoke", "--only", "mora", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("plan-smoke-*.json")
    assert [row["error"] for row in json.loads(path.read_text())["rows"]] == ["out of memory"] * 2
    monkeypatch.undo()
    bench.main(["plan", "--smoke", "--only", "mora", "--out", str(tmp_path)])
    assert not any("error" in row for row in json.loads(path.read_text())["rows"])


MEASURED = [
    (path.stem, row)
    for path in sorted(render.RESULTS.glob("plan-*.json"))
    for row in json.loads(path.read_text())["rows"]
    if "error" not in row
]


@pytest.mark.skipif(not MEASURED, reason="no plan has been measured yet: python -m mora.bench plan")
@pytest.mark.parametrize(
    ("where", "row"), MEASURED or [("", {})], ids=lambda x: x if isinstance(x, str) else x.get("name")
)
def test_the_plan_is_within_15_percent_of_real_steps(where, row):
    predicted = plan.predict(row)
    assert predicted.peak_bytes == pytest.approx(row["peak_bytes"], rel=plan.TOLERANCE)
    if predicted.step_s is not None and speed.is_steady(row["step_s"]):  # else there is no one time to hold it against
        assert predicted.step_s == pytest.approx(statistics.median(row["step_s"]), rel=plan.TOLERANCE)


@pytest.mark.skipif(not MEASURED, reason="no plan has been measured yet: python -m mora.bench plan")
def test_most_cases_have_another_like_them_to_predict_their_time_from():
    without = {row["name"] for _, row in MEASURED if plan.predict(row).step_s is None}
    assert without == {name for name in without if name.startswith(("llama2_7b mora", "qwen 1.5B"))}
    assert len(without) <= len(MEASURED) / 3
