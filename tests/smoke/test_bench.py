"""The benchmarks run on a CPU with a tiny model, and what they write becomes tables. Their numbers are not tested."""

from __future__ import annotations

import copy
import json

import pytest

from mora.bench import __main__ as bench
from mora.bench import render


@pytest.fixture
def step_result(tmp_path) -> dict:
    bench.main(["step", "--smoke", "--rounds", "2", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("step-smoke-*.json")
    return json.loads(path.read_text())


def test_steps_of_all_methods_are_measured_and_rendered(step_result, tmp_path, monkeypatch):
    (scenario,) = step_result["scenarios"]
    assert [case["name"] for case in scenario["cases"]] == [
        "floor",
        "lora r=2",
        "mora rotation r=2",
        "mora sharing r=2",
    ]
    assert all(len(case["ms"]) == 2 and min(case["ms"]) > 0 for case in scenario["cases"])
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n")
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "PAGE", page)
    render.render()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| mora sharing r=2 |" in text
    render.render()
    assert page.read_text() == text


def test_a_bar_is_met_or_missed_by_the_ratio_to_lora_of_the_same_rank(step_result):
    result = copy.deepcopy(step_result)
    (scenario,) = result["scenarios"]
    scenario |= {"shape": "llama2_7b", "batch_size": 8, "length": 1024}
    for case, ms, gib in zip(scenario["cases"], (90, 100, 101, 95), (1, 10, 10, 8.6), strict=True):
        case |= {"r": 8 if case["r"] else 0, "ms": [ms, ms, ms], "activation_bytes": gib * 2**30}
        case["name"] = case["name"].replace("r=2", "r=8")
    text = render.tables(result)
    assert "time 1.00 missed, memory 1.00 met" in text
    assert "time 0.95 met, memory 0.85 missed" in text


def test_the_whole_loop_runs_against_the_hugging_face_trainer(tmp_path):
    bench.main(["loop", "--smoke", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("loop-smoke-*.json")
    result = json.loads(path.read_text())
    assert [row["who"] for row in result["rows"]] == ["HF Trainer, PEFT LoRA r=8", "ours, MoRA r=8"]
    assert all(row["tokens_per_s"] > 0 for row in result["rows"])
    assert "| ours, MoRA r=8 | 512 tokens |" in render.tables(result)


def test_single_layers_are_measured(capsys):
    bench.main(["layers", "--smoke"])
    assert "rotation" in capsys.readouterr().out


def test_the_committed_page_has_its_markers_and_holds_what_was_measured():
    page = render.PAGE.read_text()
    assert page.count(render.BEGIN) == page.count(render.END) == 1
    for path in render.RESULTS.glob("*.json"):
        assert render.tables(json.loads(path.read_text())) in page, (
            f"{path.name} is not rendered: make bench renders it"
        )
