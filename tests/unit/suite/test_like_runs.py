"""What a run will hold and take, from results of runs like it and from the plan."""

import types
from math import inf

import pytest

from mora.config.cached_composition import compose_cached as compose
from mora.planner.speed import TokenTime
from mora.suite import like_runs as module
from mora.suite.like_runs import LikeRuns

GIB = 2**30
FINANCE = "task=finance scale=mid method=lora r=4 lr=1e-3"
SEARCH = "task.train.shorten_by=3 task.evaluation.tasks=[]"
UUID = "task=uuid scale=smoke method=lora r=8"


@pytest.fixture
def like_runs(tmp_path):
    return LikeRuns(tmp_path, "NVIDIA H200")


@pytest.fixture
def plan(monkeypatch):
    """Makes up the plan's time per token; at first that of another GPU."""

    def says(seconds_per_token, device="NVIDIA H200"):
        time = TokenTime(seconds_per_token, f"measured, {device}", device)
        monkeypatch.setattr(module, "token_time", lambda *_: time)

    says(1.0, "a GPU of no result")
    return says


def result(config, **values):
    there = {"peak_memory_bytes": None, "hardware": {"device": "NVIDIA H200"}, "wall_s": None, "last_step": 100}
    there |= {"speed": None, "scoring_s": None}
    return types.SimpleNamespace(**{"config": config.model_dump(mode="json")} | there | values)


def speed(step_s, fastest_s):
    return {"step_s": step_s, "fastest_s": fastest_s, "tokens_per_s": 1.0}


def test_what_is_not_training_is_taken_as_it_was_and_a_step_at_its_fastest(like_runs, plan):
    config = compose(UUID.split())
    like_runs.add(result(config, wall_s=60.0, speed=speed(0.5, 0.1)))
    assert like_runs.expected_s(config) == pytest.approx(10.0 + 0.1 * config.last_step)
    assert like_runs.expected_s(config, [inf, inf]) == pytest.approx(10.0 + 3 * 0.1 * config.last_step)


def test_a_run_beside_it_takes_of_the_gpu_what_it_still_needs_but_no_more_than_an_equal_part(like_runs, plan):
    config = compose(UUID.split())
    alone = 0.1 * config.last_step
    like_runs.add(result(config, wall_s=60.0, speed=speed(0.5, 0.1)))
    assert like_runs.training_s(config) == pytest.approx(alone)
    assert like_runs.expected_s(config, [0.2 * alone, 7 * alone, 0.0]) == pytest.approx(10.0 + 2.2 * alone)


def test_the_like_runs_nearest_in_steps_decide(like_runs, plan):
    config = compose(UUID.split())
    n = config.last_step
    for rest_s, steps in ((5.0, 10 * n), (20.0, n), (40.0, n), (30.0, n)):
        like_runs.add(result(config, wall_s=rest_s + steps, last_step=steps, speed=speed(1.0, 1.0)))
    assert like_runs.expected_s(config) == pytest.approx(30.0 + n)


def test_a_result_without_speed_tells_the_time_of_all_and_another_gpus_nothing(like_runs, plan):
    config = compose(UUID.split())
    for device in ("NVIDIA H20", ""):
        like_runs.add(result(config, wall_s=900.0, last_step=config.last_step, hardware={"device": device}))
    assert like_runs.expected_s(config) is None
    like_runs.add(result(config, wall_s=600.0, last_step=config.last_step))
    assert like_runs.expected_s(config) == pytest.approx(600.0)


def test_runs_that_always_shared_their_gpu_take_no_longer_alone_than_the_plan_has_measured(like_runs, plan):
    """Four searches shared an H200: a step of 14 sequences took 1.06 s at its fastest, and alone one takes 0.3."""
    config = compose(f"{FINANCE} {SEARCH}".split())
    like_runs.add(result(config, wall_s=189.3, speed=speed(1.2, 1.06)))
    assert like_runs.expected_s(config) == pytest.approx(69.3 + 106)
    plan(0.3 / (14 * 1024), "NVIDIA H20")
    assert like_runs.expected_s(config) == pytest.approx(69.3 + 106), "what was measured on another GPU does not count"
    plan(0.3 / (14 * 1024))
    assert like_runs.expected_s(config) == pytest.approx(69.3 + 30)
    assert like_runs.expected_s(config, [inf] * 3) == pytest.approx(69.3 + 4 * 30)


def test_runs_that_never_had_their_gpu_alone_tell_by_their_part_of_it(like_runs, plan):
    config = compose(UUID.split())
    n, shared = config.last_step, {"device": "NVIDIA H200", "runs_side_by_side": 4}
    for step_s in (0.8, 2.0, 1.6):
        like_runs.add(result(config, wall_s=10.0 + step_s * n, last_step=n, speed=speed(step_s, 0.7), hardware=shared))
    assert like_runs.expected_s(config, [inf] * 3) == pytest.approx(10.0 + 1.6 * n), "as the median of them"
    assert like_runs.expected_s(config, [inf]) == pytest.approx(10.0 + 0.8 * n)
    length = module.length_of(config)
    plan(0.5 * n / (length.tokens * length.padding))
    assert like_runs.expected_s(config, [inf] * 3) == pytest.approx(10.0 + 4 * 0.5 * n), (
        "the plan knows it of one alone"
    )


def test_scoring_takes_what_it_took_another_method(like_runs, plan):
    searched, final = compose(f"{FINANCE} {SEARCH}".split()), compose(FINANCE.split())
    untouched = compose(["task=finance", "scale=mid", "method=none"])
    plan(0.3 / (14 * 1024))
    assert like_runs.expected_s(final) == pytest.approx(90)
    like_runs.add(result(searched, wall_s=60.0, speed=speed(0.3, 0.3), scoring_s=10.0))
    assert like_runs.expected_s(searched) == pytest.approx(60)
    assert like_runs.expected_s(final) == pytest.approx(90 + 20)
    like_runs.add(result(untouched, wall_s=156.0, scoring_s=139.0, last_step=0))
    assert like_runs.expected_s(final) == pytest.approx(90 + 20 + 139)


def test_a_run_by_tokens_claims_what_its_passes_need(like_runs):
    run = ["task=tulu2", "scale=lite", "method=lora", "r=8", "model=llama2_7b"]
    few, many, whole = (
        like_runs.claim_gib(compose([*run, *more]), 24.0)
        for more in (["hardware.micro_batch_tokens=4096"], ["hardware.micro_batch_tokens=16384"], [])
    )
    assert 20 < few < many < whole  # passes of 4, 16 and 32 sequences of 1,024 tokens


def test_a_run_claims_what_like_runs_held_only_if_their_passes_had_its_size(like_runs):
    large, small = compose(FINANCE.split()), compose([*FINANCE.split(), "hardware.micro_batch_size=2"])
    planned = like_runs.claim_gib(large, 24.0)
    held = result(large, peak_memory_bytes=22.8 * GIB, hardware={"reserved_memory_bytes": 42.7 * GIB})
    del held.config["hardware"]["padding_free"]  # results from before there was that choice lack it
    like_runs.add(held)
    assert like_runs.claim_gib(large, 24.0) == pytest.approx(42.7 * 1.1 + 1)
    held.hardware = {"reserved_memory_bytes": 31.9 * GIB}  # of later source, which needs less
    like_runs.add(held)
    assert like_runs.claim_gib(large, 24.0) == pytest.approx(31.9 * 1.1 + 1)
    assert like_runs.claim_gib(small, 24.0) == planned  # what scoring holds
    search, small_search = (
        like_runs.claim_gib(compose([*FINANCE.split(), *more, "task.evaluation.tasks=[]"]), 24.0)
        for more in ([], ["hardware.micro_batch_size=2"])
    )
    assert small_search < search / 2 < planned / 2


@pytest.mark.parametrize(
    ("run", "held_gib", "most"),  # on an H200, by source that empties the cache before a capture
    [
        ("task=tulu2 method=fft lr=1e-5", 49.7, 1.2),
        ("task=finance method=lora r=4 lr=1e-3", 31.9, 1.2),
        ("task=finance method=mora r=4 lr=3e-4", 30.9, 1.2),
        (f"task=finance method=lora r=4 lr=1e-3 {SEARCH}", 23.6, 1.2),
        ("task=tulu2 method=none", 10.0, 4.0),  # finance decides what scoring claims
    ],
)
def test_a_run_like_no_other_claims_what_such_runs_hold(run, held_gib, most, like_runs):
    claim = like_runs.claim_gib(compose([*run.split(), "scale=mid"]), 24.0)
    assert held_gib < claim < most * held_gib
