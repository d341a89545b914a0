"""The speed that a plan assumes: of the nearest measurement, and what was measured on an H100 from its neighbours."""

import json
from dataclasses import replace
from itertools import product

import pytest
from paper_runs import paper

from mora.bench import plan
from mora.config.cached_composition import compose_cached as compose
from mora.config.load import load
from mora.config.source import ROOT
from mora.errors import DamagedFileError
from mora.planner import counts, speed
from mora.planner.cost import cost
from mora.results import read

LARGE = ["task=metamath", "hardware=gpu1", "hardware.cuda_graphs=false"]
CASES = {case.name: case for case in plan.cases(smoke=False)} | {
    case.name: case
    for method, r, checkpointed in product(("lora", "mora"), (8, 256), (False, True))
    for case in [plan._case("llama2_7b", LARGE, method, r, 4, 1024, 2, checkpointed)]
}
H100 = {  # medians in ms of steps that were steady, on an NVIDIA H100 80GB HBM3 at commit 30a9399, torch 2.11
    "smollm2 lora r=8 1 x 100 x 72": 44.12,
    "smollm2 lora r=32 1 x 100 x 72": 43.58,
    "smollm2 mora r=8 1 x 100 x 72": 42.23,
    "smollm2 mora r=32 1 x 100 x 72": 37.94,
    "smollm2 rotation mora r=1 1 x 100 x 72": 42.83,
    "smollm2 rotation mora r=8 1 x 100 x 72": 39.58,
    "llama_250m fft 2 x 32 x 512": 166.6,
    "llama_250m fft 4 x 16 x 512": 175.1,
    "llama_250m lora r=128 2 x 32 x 512": 247.6,
    "llama_250m lora r=128 4 x 16 x 512": 259.4,
    "llama_250m mora r=128 2 x 32 x 512": 227.3,
    "llama_250m mora r=128 4 x 16 x 512": 240.4,
    "llama2_7b lora r=8 2 x 4 x 1024": 541.4,
    "llama2_7b lora r=256 2 x 4 x 1024": 584.5,
    "llama2_7b lora r=256 2 x 4 x 1024 checkpointed": 940.1,
}
FFT = "smollm2 fft 1 x 100 x 72", "smollm2 fft 2 x 50 x 72"  # 32.35 and 38.21 ms: half the tokens take 0.59 of the time


def row(name, *ms):
    case = CASES[name]
    shape = {"batch_size": case.batch_size, "length": case.length, "micro_batches": case.micro_batches}
    return {"name": name, "overrides": case.all_overrides(), "fused": True, "step_s": [x / 1e3 for x in ms], **shape}


@pytest.fixture
def only(monkeypatch):
    """Nothing was measured but these rows."""

    def use(*rows, passes=(), runs=()):
        monkeypatch.setattr(speed, "_real_steps", lambda: tuple(speed.of_row(r, "GPU") for r in rows))
        monkeypatch.setattr(speed, "_passes", lambda: tuple(passes))
        monkeypatch.setattr(speed, "_runs", lambda: tuple(runs))

    return use


@pytest.fixture(scope="module")
def measured():
    return tuple(speed.of_row(row(name, ms), "GPU") for name, ms in H100.items())


@pytest.mark.parametrize("name", H100)
def test_every_steady_case_is_predicted_from_the_others_within_15_percent(name, measured, only, monkeypatch):
    only()
    monkeypatch.setattr(speed, "_real_steps", lambda: measured)
    said = plan.predict(row(name, H100[name]))
    assert not said.source.endswith(f", {name}")
    assert said.step_s == pytest.approx(H100[name] / 1e3, rel=plan.TOLERANCE)


def test_two_sizes_of_micro_batch_give_a_line(only):
    whole, half = row(FFT[0], 32.35), row(FFT[1], 38.21)
    only(half)
    assert plan.predict(whole).step_s == pytest.approx(0.03821)
    only(whole, half)
    a_token = (32.35 - 38.21 / 2) / (50 * 72)
    quarter = row("smollm2 fft 4 x 25 x 72", 1.0)
    expected = 4 * (38.21 / 2 - a_token * 25 * 72) / 1e3
    assert plan.predict(quarter).step_s == pytest.approx(expected)


def test_nothing_like_it_is_an_assumption_that_says_so(only):
    only()
    time = speed.token_time(paper("mora"), 1024, 1)
    assert (time.measured, time.source) == (False, "assumed, 40% of 989 TFLOP/s")
    assert time.seconds_per_token == pytest.approx(counts.flops_per_token(paper("mora"), 1024) / 0.4 / 989e12)
    only(row("smollm2 lora r=8 1 x 100 x 72", 44.0))
    assert not speed.token_time(paper("mora"), 1024, 1).measured, "another model's speed says nothing"


LORA, CHECKPOINTED = "llama2_7b lora r=8 2 x 4 x 1024", "llama2_7b lora r=8 2 x 4 x 1024 checkpointed"


def nearest(method, *overrides):
    return speed.token_time(paper(method, "hardware=gpu1", *overrides), 1024, 4).source.removeprefix("measured, GPU, ")


def test_the_nearest_case_is_of_the_method_then_steady_then_alike_in_graphs_checkpointing_and_rank(only):
    base = speed.of_row(row(LORA, 100.0), "GPU")
    other_method = row("llama2_7b mora r=8 2 x 4 x 1024", 100.0)
    only(other_method, row("llama2_7b lora r=256 2 x 4 x 1024 checkpointed", 100.0))
    assert nearest("lora") == "llama2_7b lora r=256 2 x 4 x 1024 checkpointed"
    only(other_method)
    assert nearest("mora") == other_method["name"]
    only(row(LORA, 100.0, 120.0), row("llama2_7b lora r=256 2 x 4 x 1024", 100.0))
    assert nearest("lora") == "llama2_7b lora r=256 2 x 4 x 1024", "a disturbed case comes after a steady one"
    only(row(LORA, 100.0), row(CHECKPOINTED, 150.0), row("llama2_7b lora r=256 2 x 4 x 1024", 110.0))
    assert nearest("lora") == LORA
    assert nearest("lora", "r=128") == "llama2_7b lora r=256 2 x 4 x 1024"
    assert nearest("lora", "hardware.gradient_checkpointing=true") == CHECKPOINTED
    only(passes=[replace(base, name="a pass", whole=False)])
    assert nearest("lora") == "a pass"
    only(row("llama2_7b lora r=256 2 x 4 x 1024", 100.0), passes=[replace(base, name="a pass", whole=False)])
    assert nearest("lora") == "llama2_7b lora r=256 2 x 4 x 1024", "real steps come before passes"
    run = replace(base, name="a run", tokens=base.tokens / 2, benchmark=False)
    only(row(LORA, 100.0), runs=[run])
    assert speed.token_time(paper("lora"), 1024, 2).source == f"measured, GPU, {LORA}", "of one rank, before runs"
    only(row("llama2_7b lora r=256 2 x 4 x 1024", 100.0), runs=[run])
    assert nearest("lora") == "a run", "its rank is nearer"


@pytest.mark.parametrize("method", ["fft", "dora", "lora"])
def test_the_speed_of_another_method_is_better_than_none_and_is_not_called_measured(method, only):
    only(row("llama2_7b mora r=8 2 x 4 x 1024", 100.0))
    time = speed.token_time(paper(method, "hardware=gpu1"), 1024, 4)
    assert (time.measured, time.source) == (False, "extrapolated from llama2_7b mora r=8 2 x 4 x 1024, GPU")
    only(row(LORA, 100.0))
    same = speed.token_time(paper("relora", "hardware=gpu1"), 1024, 4)
    assert (same.measured, same.source) == (True, f"measured, GPU, {LORA}"), "restarts aside, it is LoRA"
    with_the_head = compose(["task=c4", "model=llama2_7b", "method=lora", "r=8", "hardware=gpu1"])
    assert speed.token_time(with_the_head, 1024, 4).source == f"extrapolated from {LORA}, GPU"


def test_checkpointing_is_made_equal_by_the_flops_of_the_base(only):
    only(row(LORA, 541.4))
    again = speed.token_time(paper("lora", "hardware.gradient_checkpointing=true"), 1024, 4).seconds_per_token
    once = speed.token_time(paper("lora"), 1024, 4).seconds_per_token
    assert once == pytest.approx(0.5414 / 8192)
    assert again / once == pytest.approx(1.5, rel=0.02)


def test_only_a_run_that_had_the_gpu_alone_counts(tmp_path, monkeypatch):
    config = paper("lora", "hardware=gpu1", "task.train.global_batch_size=8", "hardware.micro_batch_size=4")
    result = {
        "run_id": "twin",
        "status": "done",
        "metrics": {},
        "parameters": {"trainable": 1},
        "source": {"commit": None, "dirty": False, "fingerprint": ""},
        "config": config.model_dump(mode="json"),
        "data": {"report": {"sequences": 10, "sequence_tokens": 1000}},
        "speed": {"step_s": 2.0, "fastest_s": 1.9, "tokens_per_s": 400.0},
        "hardware": {"device": "GPU", "ranks": 1, "runs_side_by_side": 1, "peak_memory_bytes": 1},
    }
    monkeypatch.setattr(speed, "RUNS", tmp_path)
    read = speed._runs.__wrapped__

    def saved(**hardware):
        (tmp_path / "twin.json").write_text(json.dumps(result | {"hardware": result["hardware"] | hardware}))
        return read()

    (measured,) = saved()
    assert (measured.name, measured.tokens, measured.seconds, measured.steady) == ("run twin", 400, 1.0, True)
    assert measured.config.r == config.r
    assert saved(runs_side_by_side=4) == ()
    assert saved(ranks=2) == ()
    assert saved(peak_memory_bytes=None) == (), "a run on a CPU"


def test_the_committed_measurements_are_read():
    passes = speed._passes()
    assert {m.config.model.name for m in passes} >= {"llama2_7b", "smollm2_135m"}
    assert all(m.seconds > 0 and m.tokens > 0 for m in (*passes, *speed._runs()))
    lora = next(m for m in passes if m.name == "lora r=8" and m.config.model.name == "llama2_7b")
    assert lora.seconds == pytest.approx(0.66, rel=0.1)


@pytest.mark.parametrize(("method", "r"), [("remora", 128), ("lora", 128)])
def test_the_measured_1b3_shape_is_found_by_its_name_in_configs(method, r):
    config = compose(["task=c4", f"method={method}", f"r={r}", "model=llama_1b3", "hardware=gpu1"])
    time = speed.token_time(config, 512, 8)
    assert "assumed" not in time.source
    assert "H100" in time.source


def test_a_measurement_of_an_unknown_shape_is_not_passed_over(tmp_path, monkeypatch):
    case = {"name": "lora r=8", "method": "lora", "r": 8, "ms": [1.0], "stock": False, "form": "auto"}
    scenario = {"shape": "llama_9b", "cases": [case], "batch_size": 1, "length": 8}
    result = {"scenarios": [scenario], "hardware": {"device": "x"}}
    (tmp_path / "step-x.json").write_text(json.dumps(result))
    monkeypatch.setattr(speed, "BENCH", tmp_path)
    with pytest.raises(DamagedFileError, match=r"shape 'llama_9b' has no configs/model/llama_9b\.yaml"):
        speed._passes.__wrapped__()


@pytest.mark.parametrize(
    "run",
    [
        "metamath-fft-lr1e-5-s0-7d3cd6a0eb",
        "metamath-lora-r4-lr1e-3-s1-d22c04c77b",
    ],
)
def test_the_benchmarks_and_the_counted_padding_predict_a_run_that_had_its_gpu_to_itself(run, monkeypatch):
    result = read(ROOT / "results" / "runs" / f"{run}.json")
    assert result.hardware["runs_side_by_side"] == 1
    monkeypatch.setattr(speed, "_runs", tuple)  # its own time among them
    planned = cost(load(result.config), [result])
    assert planned.time_source.startswith("measured")
    assert 3600 * planned.gpu_hours / planned.steps == pytest.approx(result.speed["step_s"], rel=0.15)
    allocated, held = result.hardware["peak_memory_bytes"], result.hardware["reserved_memory_bytes"]
    assert planned.memory.gpu - planned.memory.graphs == pytest.approx(allocated, rel=0.15)
    assert planned.memory.gpu == pytest.approx(held, rel=0.15)
