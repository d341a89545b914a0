"""The benchmarks run on a CPU with a tiny model, and what they write becomes tables. Their numbers are not tested."""

from __future__ import annotations

import json
import multiprocessing
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mora.bench import __main__ as bench
from mora.bench import compiled, decoding, profile, quantised, render, step


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> Path:
    """The file of measured steps."""
    tmp_path = tmp_path_factory.mktemp("steps")
    bench.main(["step", "--smoke", "--rounds", "2", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("step-smoke-*.json")
    return path


@pytest.fixture
def step_result(steps) -> dict:
    return json.loads(steps.read_text())


def test_steps_of_all_methods_are_measured_and_rendered(steps, step_result, tmp_path, monkeypatch, capsys):
    (scenario,) = step_result["scenarios"]
    assert [case["name"] for case in scenario["cases"]] == [
        "floor",
        "lora r=2",
        "mora rotation r=2",
        "mora sharing r=2",
        "mora sharing r=2 checkpointed",
    ]
    assert all(len(case["ms"]) == 2 and min(case["ms"]) > 0 for case in scenario["cases"])
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n")
    monkeypatch.setattr(render, "RESULTS", steps.parent)
    monkeypatch.setattr(render, "PAGE", page)
    render.render()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| mora sharing r=2 |" in text
    render.render()
    assert page.read_text() == text
    damaged = tmp_path / "step-smoke.json"
    damaged.write_text(steps.read_text().replace('"batch_size": 2', '"batch_size": 3'))
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    with pytest.raises(SystemExit):
        bench.main(["render"])
    assert (
        f"mora.bench: {damaged} is damaged (its values are not those that its digest was made of"
        in capsys.readouterr().err
    )
    assert page.read_text() == text


def test_a_bar_is_met_or_missed_by_the_ratio_to_lora_of_the_same_rank(step_result):
    result = step_result
    (scenario,) = result["scenarios"]
    scenario |= {"shape": "llama2_7b", "batch_size": 8, "length": 1024}
    scenario["cases"] = [case for case in scenario["cases"] if not case["checkpointed"]]
    for case, ms, gib in zip(scenario["cases"], (90, 100, 101, 95), (1, 10, 10, 8.6), strict=True):
        case |= {"r": 8 if case["r"] else 0, "ms": [ms, ms, ms], "activation_bytes": gib * 2**30}
        case["name"] = case["name"].replace("r=2", "r=8")
    text = render.tables(result)
    assert "time 1.00 missed, memory 1.00 met" in text
    assert "time 0.95 met, memory 0.85 missed" in text


@pytest.mark.parametrize(
    ("shape", "rotation", "sharing"),
    [
        ("smollm2_135m", "time 1.10 met", "time 1.05 missed"),
        ("qwen25_coder_0b5", "time 1.00 missed", "time 1.00 missed"),
    ],
)
def test_small_models_have_bars_of_their_own(step_result, shape, rotation, sharing):
    (scenario,) = step_result["scenarios"]
    tokens = {"smollm2_135m": (100, 72), "qwen25_coder_0b5": (50, 72)}[shape]
    scenario |= {"shape": shape, "batch_size": tokens[0], "length": tokens[1]}
    for case, ms in zip(scenario["cases"], (90, 100, 110, 110, 110), strict=True):
        case |= {"r": 8 if case["r"] else 0, "ms": [ms] * 3, "name": case["name"].replace("r=2", "r=8")}
    rows = render.tables(step_result).splitlines()
    verdicts = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in rows if "r=8" in row}
    assert verdicts == {
        "lora r=8": "",
        "mora rotation r=8": rotation,
        "mora sharing r=8": sharing,
        "mora sharing r=8 checkpointed": "",
    }


def test_a_gpu_that_holds_no_case_has_a_table_all_the_same(step_result):
    for case in step_result["scenarios"][0]["cases"]:
        case |= {"ms": [], "error": "out of memory"}
    assert "tiny, 2 x 32 tokens, 0 rounds" in (text := render.tables(step_result))
    assert text.count("| out of memory |") == 5


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        bench.main(["step", "--smoke", "--out", str(tmp_path / "file")])
    said = capsys.readouterr()
    assert "argument --out: " in said.err
    assert not said.out


def test_what_was_measured_is_kept_when_a_later_scenario_fails(tmp_path, monkeypatch):
    (scenario,) = step.scenarios("smoke")
    monkeypatch.setattr(step, "scenarios", lambda extent: [scenario, replace(scenario, shape="no such shape")])
    with pytest.raises(KeyError, match="no such shape"):
        bench.main(["step", "--smoke", "--rounds", "1", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("step-smoke-*.json")
    assert [s["shape"] for s in json.loads(path.read_text())["scenarios"]] == ["tiny"]


def test_compiled_steps_are_measured_each_in_its_process(tmp_path):
    bench.main(["compiled", "--smoke", "--rounds", "2", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("compiled-smoke-*.json")
    result = json.loads(path.read_text())
    (scenario,) = result["scenarios"]
    lora, mora = scenario["cases"]
    for case in (lora, mora):
        assert len(case["ms"]) == 2
        assert min(case["ms"]) > 0
        assert case["graphs"] == 1, "a graph break costs more than an adapter"
        assert case["first_step_s"] * 1e3 > max(case["ms"])
    lora["ms"], mora["ms"] = [20.0, 10.0], [15.0, 14.0]
    assert "| mora sharing r=2 | 14.5 (14.0 to 15.0) | 1.075 (0.75 to 1.40) | " in (text := render.tables(result))
    assert text.count(" | missed, within noise |") == 1
    mora |= {"ms": [], "error": "out of memory"}
    assert "| mora sharing r=2 | out of memory | | | | |" in render.tables(result)


def test_a_case_that_fails_or_is_late_loses_no_other(monkeypatch):
    cases = compiled.SMOKE.scenarios[0].cases
    workers = [_worker(case) for case in cases] + [_worker(replace(cases[0], r=3))]
    (_, first), (_, second), (_, third) = workers
    first.send({"graphs": 1})
    second.close()
    compiled._await_first_steps([worker for worker, _ in workers], patience_s=0.2)
    first.send(12.5)
    for worker, _ in workers:
        compiled._take_turn(worker)
    first.send({"error": "RuntimeError: later"})
    compiled._take_turn(workers[0][0])
    assert [worker.result for worker, _ in workers] == [
        {"ms": [12.5], "graphs": 1, "error": "RuntimeError: later"},
        {"ms": [], "error": "its process died"},
        {"ms": [], "error": "not compiled within 0 s"},
    ]
    assert [worker.process.killed for worker, _ in workers] == [False, False, True]
    assert third.poll() is False, "it is not asked for a step"


def _worker(case):
    ours, theirs = multiprocessing.Pipe()
    process = SimpleNamespace(killed=False)
    process.kill = lambda: setattr(process, "killed", True)
    return compiled._Worker(compiled.SMOKE.scenarios[0], case, process, ours, {"ms": []}), theirs


def test_decoding_is_measured_in_turns(tmp_path):
    bench.main(["decoding", "--smoke", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("decoding-smoke-*.json")
    result = json.loads(path.read_text())
    (scenario,) = result["scenarios"]
    assert [case["name"] for case in scenario["cases"]] == ["floor", "lora r=2", "mora sharing r=2"]
    for case, seconds in zip(scenario["cases"], ([1.0, 1.0], [2.0, 4.0], [3.0, 3.0]), strict=True):
        assert len(case["seconds"]) == 2
        assert min(case["seconds"]) > 0
        case["seconds"] = seconds
    assert "| 2.0 (2.0 to 2.0) | 0.333 | 1.125 (0.75 to 1.50) | missed, within noise |" in render.tables(result)
    scenario["cases"][2]["seconds"] = [1.9, 3.8]
    assert "| 2.1 (1.6 to 3.2) | 0.351 | 0.950 | met |" in render.tables(result)


def test_a_text_that_ends_early_is_not_timed():
    (case, *_), prompt = decoding.SMOKE.cases, torch.tensor([[5, 6, 7]])
    model = decoding.endless("tiny", torch.device("cpu"))
    decode = decoding._decoder(model, prompt, case)
    decode(5)
    model.generation_config.eos_token_id = model.generate(input_ids=prompt, max_new_tokens=5)[0, -1].item()
    with pytest.raises(RuntimeError, match=r"floor: wrote [1-5] tokens of 9"):
        decode(9)


def test_an_extent_that_a_measurement_has_not_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["decoding", "--small"])
    assert "decoding has no --small" in capsys.readouterr().err


def test_quantised_bases_are_measured_and_train(tmp_path):
    pytest.importorskip("bitsandbytes")
    bench.main(["quantised", "--smoke", "--rounds", "2", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("quantised-smoke-*.json")
    result = json.loads(path.read_text())
    methods = ("lora r=2 stock", "mora rotation r=2 stock", "mora sharing r=2 stock")
    assert [case["name"] for case in result["cases"]] == [f"{m} on {b}" for b in quantised.BASES for m in methods]
    assert all(len(case["ms"]) == 2 and min(case["ms"]) > 0 for case in result["cases"])
    assert all(case["losses"][-1] < case["losses"][0] for case in result["cases"])
    result["base_bytes"] = {name: 2**30 for name in quantised.BASES}
    for case, ms in zip(result["cases"], (10, 11, 12) * 3, strict=True):
        case |= {"ms": [ms], "activation_bytes": ms * 2**30, "losses": [10.5, 9.25]}
    text = render.tables(result)
    row = "| mora sharing r=2 stock on nf4 | 1.00 |"
    assert f"{row} 12.0 (12.0 to 12.0) | 1.200 | 12.00 | 1.200 | 10.500 to 9.250 |" in text
    result["cases"][-1] |= {"ms": [], "error": "out of memory"}
    assert f"{row} out of memory |  |  |  | 10.500 to 9.250 |" in render.tables(result)
    del result["cases"][-1]["losses"]  # as in the file before the case has trained
    assert f"{row} out of memory |  |  |  | not run |" in render.tables(result)


@pytest.mark.parametrize(("how", "linear", "off"), [("int8", "Linear8bitLt", 0.02), ("nf4", "Linear4bit", 0.2)])
def test_a_quantised_base_is_the_same_base_rounded(how, linear, off):
    pytest.importorskip("bitsandbytes")
    plain, rounded = (quantised.quantised("tiny", name, torch.device("cpu")) for name in ("bf16", how))
    tokens = quantised._tokens("tiny", (2, 32), torch.device("cpu"))
    with torch.no_grad():
        expected, got = plain.model(tokens)[0], rounded.model(tokens)[0]
    assert 0 < (got - expected).norm() < off * expected.norm()
    kinds = {type(module).__name__ for module in rounded.model.modules()}
    assert linear in kinds
    assert "Linear" not in kinds


def test_a_steps_time_is_told_apart_by_kernel(capsys):
    bench.main(["profile", "--smoke", "--only", "tiny mora r=4 2 x 4 x 32 checkpointed"])
    first, *rows = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"tiny mora r=4 2 x 4 x 32 checkpointed: [\d.]+ ms in \d+ kernels", first)
    assert {"matrix products", "attention", profile.REST} <= {row.split(" x  ")[1] for row in rows}


def test_kernels_are_summed_by_family_the_slowest_first():
    kernels = {
        "nvjet_tst_128x256_64x4_2x1_v_bz_TNT": (3.0, 2),
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu>": (1.5, 1),
        "gather_sum": (4.0, 8),
        "void pytorch_flash::flash_bwd_kernel<Flash_bwd_params>": (0.5, 1),
        "_rms_norm_forward_kernel": (0.25, 1),
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdam>": (0.125, 1),
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>": (0.0625, 3),
    }
    first, *rows = profile.table("case", kernels).splitlines()
    assert first == "case: 9.4 ms in 7 kernels"
    assert [(float(ms), name) for ms, name in (re.split(r" ms +\d+ x  ", row) for row in rows[:6])] == [
        (4.5, "matrix products"),
        (4.0, "MoRA's maps"),
        (0.5, "attention"),
        (0.25, "norms, rotary embedding, gates"),
        (0.12, "optimizer"),
        (0.06, profile.REST),
    ]
    assert rows[6].endswith("8 x  gather_sum")


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
