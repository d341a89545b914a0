"""Steps, tokens and the plan of a whole table."""

import math

import pytest
from paper_runs import paper

from mora.config import ConfigError, source
from mora.config.cached_composition import compose_cached as compose
from mora.config.load import load
from mora.config.source import CONFIG_DIR, ROOT
from mora.models.shapes import shape_of
from mora.planner import cost, counts, speed
from mora.results import RunResult, read
from mora.suite import experiments, plan
from mora.suite.cell_specs import cell_specs


@pytest.mark.parametrize(("task", "steps"), [("tulu2", 5093), ("metamath", 9100), ("biomed", 5000), ("finance", 5000)])
def test_steps_follow_from_the_size_of_the_papers_sets(task, steps):
    config = compose([f"task={task}", "method=fft"])
    assert cost.length_of(config).steps == steps
    data = {"report": {"sequences": 128_000, "sequence_tokens": 100 * 128_000}}
    result = RunResult.model_construct(config=config.model_dump(mode="json"), data=data)
    known = cost.length_of(config, [result])
    assert known.steps == math.ceil(config.task.train.epochs * 128_000 / 128)
    assert (known.tokens, known.at_most, known.padding) == (known.steps * 128 * 100, False, 1)


def test_hours_count_the_padding_that_a_run_has_counted():
    config = compose(["task=metamath", "method=fft", "hardware=gpu1"])
    data = {"report": {"sequences": 128_000, "sequence_tokens": 100 * 128_000}}
    without, with_padding = (
        cost.cost(config, [RunResult.model_construct(config=config.model_dump(mode="json"), data=data, speed=speed)])
        for speed in (None, {"step_s": 1.0, "padded_tokens": 128 * 150.0})
    )
    assert with_padding.tokens == without.tokens
    assert with_padding.gpu_hours == pytest.approx(1.5 * without.gpu_hours)


def test_rows_end_to_end_are_planned_without_the_padding_that_padded_runs_counted():
    rows = compose(["task=metamath", "scale=mid", "method=fft"])
    padded = compose(
        ["task=metamath", "scale=mid", "method=fft", "hardware.padding_free=false", "hardware.micro_batch_tokens=null"]
    )
    data = {"report": {"sequences": 14_400, "sequence_tokens": 100 * 14_400}}

    def ran(config, tokens):
        speed = {"step_s": 1.0, "padded_tokens": 48 * tokens}
        return RunResult.model_construct(config=config.model_dump(mode="json"), data=data, speed=speed)

    earlier = [ran(padded, 140.0)]
    assert cost.length_of(padded, earlier).padding == pytest.approx(1.4)
    assert cost.length_of(rows, earlier).padding == 1.0
    assert cost.length_of(rows, [*earlier, ran(rows, 103.0)]).padding == pytest.approx(1.03)


MEASURED = sorted((ROOT / "results/runs").glob("*-mora-r32-*.json"))


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_the_steps_of_a_plan_are_those_that_were_run(path):
    result = read(path)
    config = load(result.config)
    assert cost.length_of(config).steps == cost.length_of(config, [result]).steps == result.last_step


@pytest.mark.parametrize("method", ["fft", "lora", "relora"])
def test_hours_and_disk_follow_from_tokens_speed_and_parameters(method):
    config = paper(method, "hardware=gpu8")
    planned, shape, own = cost.cost(config), shape_of(config.model), counts.trainable(config)
    seconds = speed.token_time(config, 2048, planned.micro_batch_size).seconds_per_token
    assert planned.tokens == 5000 * 128 * 2048
    assert planned.gpu_hours * 3600 == pytest.approx(planned.tokens * seconds)
    assert planned.disk == {"fft": 4 * own, "lora": 4 * own, "relora": 4 * own + 2 * shape.parameters}[method]
    assert planned.checkpoints == 3 * (12 * own + (4 * shape.in_layers if method == "relora" else 0))


def test_the_untuned_model_is_not_planned_as_if_it_trained():
    needs = cost.cost(compose(["task=tulu2", "method=none", "scale=lite", "hardware=gpu1"]))
    assert (needs.steps, needs.tokens, needs.flops, needs.gpu_hours, needs.disk) == (0, 0, 0, 0, 0)


def test_a_plan_keeps_what_a_task_says_of_padding_unless_it_is_told_otherwise():
    rows = compose(["task=tulu2", "scale=mid", "method=fft"])
    there = compose(["task=tulu2", "method=fft", "hardware=gpu8"]).hardware
    assert plan._as_there(rows, there, []) == there.model_dump() | {"micro_batch_tokens": 4096, "padding_free": True}
    assert plan._as_there(rows, there, ["hardware.micro_batch_size=8"]) == there.model_dump()


def test_a_plan_names_every_missing_run_and_adds_them_up(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    specs = [spec for row in cell_specs(experiments.load("table1"), "paper") for spec in row]
    text = plan.text(specs, "gpu8")
    assert "\n51 cells (a task, method and rank each), 128 runs; missing:\n128 runs, " in text
    assert len([line for line in text.splitlines() if "-s0-" in line]) == 128
    assert "Multi-GPU hours are extrapolated" in text


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIG_DIR / "hardware").glob("*.yaml")))
def test_a_plan_can_be_made_for_every_hardware(name, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    spec = cell_specs(experiments.load("table3"), "paper")[0][0]
    text = plan.text([spec], name)
    known = not name.startswith("cpu")
    assert (f"of GPU time for training on {name} " in text) == known
    assert ("fits 79 GiB" in text) == ("measured, NVIDIA" in text or "assumed, 40%" in text) == known
    assert (f", unknown hours on {name};" in text) == (f"how much memory {name} has is not known" in text) != known


def test_a_cpu_takes_the_micro_batch_that_is_set():
    too_large = ["task=uuid", "method=fft", "scale=paper"]  # for one GPU of those that are known
    assert cost.cost(compose([*too_large, "hardware=gpu1"])).micro_batch_size is None
    planned = cost.cost(compose([*too_large, "hardware=cpu", "hardware.micro_batch_size=10"]))
    assert (planned.micro_batch_size, planned.gpu_hours) == (10, None)


def test_hardware_that_cannot_share_out_the_batch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    spec = cell_specs(experiments.load("table2"), "lite")[0][0]
    with pytest.raises(ConfigError, match=r"global_batch_size=100 is not divisible by .* x 8 ranks"):
        plan.text([spec], "gpu8")


def test_unknown_hardware_is_refused_in_one_line():
    spec = cell_specs(experiments.load("table3"), "paper")[0][0]
    with pytest.raises(ConfigError, match="hardware=nothing: there is no such hardware; there are"):
        plan.text([spec], "nothing")
