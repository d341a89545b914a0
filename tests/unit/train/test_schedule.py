import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from mora.config.cached_composition import compose_cached as compose
from mora.config.method_schema import Restart
from mora.train.schedule import learning_rate

PAPER = Restart(
    every_steps=2000, warmup_steps=50, schedule="jagged", groups=None, merge_rounding="nearest", stale_masters=False
)


def rates(schedule, total=100, warmup=10, floor=0.0):
    train = compose(["task=uuid", "method=fft"]).task.train
    train = train.model_copy(update={"schedule": schedule, "warmup_steps": warmup, "min_lr_ratio": floor})
    return [learning_rate(step, total, 2.0, train) for step in range(total)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_rises_linearly_to_the_peak(schedule):
    curve = rates(schedule)
    assert curve[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert max(curve) == pytest.approx(2.0)


def test_linear_and_cosine_fall_to_the_floor():
    assert rates("linear")[55] == pytest.approx(1.0)
    assert rates("cosine")[55] == pytest.approx(1.0)
    assert rates("linear")[-1] == pytest.approx(2.0 / 90)
    assert rates("cosine", floor=0.1)[-1] == pytest.approx(0.2, abs=1e-3)
    assert rates("constant")[-1] == 2.0


def test_a_shortened_run_has_the_whole_schedule_in_less_time():
    train = compose(["task=metamath", "method=fft", "task.train.shorten_by=3"]).task.train
    assert (train.warmup, train.total_steps(12_800)) == (100, 100)  # of 300 and 300
    train = train.model_copy(update={"schedule": "cosine", "warmup_steps": 30})
    curve = [learning_rate(step, 100, 2.0, train) for step in range(100)]
    assert curve[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert curve[55] == pytest.approx(1.0)
    assert curve[-1] < 1e-2


def pretraining(kind, total=10_000, **changed):
    """The paper's 10,000 steps (section 5.3), peak 1."""
    train = compose(["task=uuid", "method=fft"]).task.train
    floor = 0.1 if kind == "jagged" else 0.0
    train = train.model_copy(update={"schedule": "cosine", "warmup_steps": 1000, "min_lr_ratio": floor})
    restart = PAPER.model_copy(update={"schedule": kind, **changed})
    return [learning_rate(step, total, 1.0, train, restart) for step in range(total)]


# Recorded from the official code with the transformers of its time: rates at three steps, the mean, and the last one.
@pytest.mark.parametrize(
    ("kind", "golden", "mean", "end"),
    [("jagged", (0.895, 0.463, 0.199), 0.539, 0.1), ("official_hf", (0.936, 0.631, 0.322), 0.617, 0.0)],
)
def test_restarting_rates_follow_the_recorded_curves(kind, golden, mean, end):
    curve = pretraining(kind)
    assert [curve[i] for i in (3000, 6060, 8060)] == pytest.approx(golden, abs=6e-4)
    assert sum(curve) / len(curve) == pytest.approx(mean, abs=6e-4)
    assert curve[-1] == pytest.approx(end, abs=1e-3)


@pytest.mark.parametrize("kind", ["jagged", "official_hf"])
def test_after_a_restart_the_rate_climbs_from_zero_in_the_steps_of_the_warm_up(kind):
    curve = pretraining(kind)
    for begin in (2000, 4000, 6000, 8000):
        assert curve[begin] == 0.0
        assert curve[begin + 25] == pytest.approx(curve[begin + 50] / 2, rel=2e-2)
        assert curve[begin + 49] < curve[begin + 50] > curve[begin + 51]


def test_a_jagged_rate_of_any_length_is_the_schedule_underneath_between_the_warm_ups():
    train = compose(["task=uuid", "method=fft"]).task.train.model_copy(update={"schedule": "cosine"})
    plain = [learning_rate(step, 7777, 1.0, train) for step in range(7777)]
    teeth = [learning_rate(step, 7777, 1.0, train, PAPER) for step in range(7777)]
    outside = [i for i in range(7777) if i < 2000 or i % 2000 >= 50]
    assert [teeth[i] for i in outside] == [plain[i] for i in outside]


def test_without_a_warm_up_a_jagged_rate_is_the_schedule_underneath():
    train = compose(["task=uuid", "method=fft"]).task.train.model_copy(update={"schedule": "cosine"})
    restart = PAPER.model_copy(update={"every_steps": 100, "warmup_steps": 0})
    plain = [learning_rate(step, 777, 1.0, train) for step in range(777)]
    assert [learning_rate(step, 777, 1.0, train, restart) for step in range(777)] == plain


def rates_of_the_official_callback(total, first_warmup, every, warmup):
    """What transformers' scheduler gives each update under ResetReloraCallback without --relora_scheduler, at peak 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, first_warmup, total)
    rates = []
    for done in range(1, total + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # the Trainer calls the callback after this
        if done % every == 0:
            scheduler.lr_lambdas[0].keywords.update(num_warmup_steps=warmup, num_training_steps=total - done)
            scheduler.last_epoch, scheduler.base_lrs = 0, scheduler.get_last_lr()
    return rates


def test_the_official_rates_are_those_of_its_callback_but_for_the_first_update_after_a_restart():
    theirs = rates_of_the_official_callback(2000, 100, 400, 50)
    train = compose(["task=uuid", "method=fft"]).task.train.model_copy(update={"schedule": "cosine"})
    restart = PAPER.model_copy(update={"schedule": "official_hf", "every_steps": 400})
    ours = [learning_rate(step, 2000, 1.0, train, restart) for step in range(2000)]
    first = [400, 800, 1200, 1600]
    rest = [step for step in range(100, 2000) if step not in first]  # the first warm-up is one update ahead of theirs
    assert [ours[step] for step in rest] == pytest.approx([theirs[step] for step in rest])
    assert [ours[step] for step in first] == [0.0] * 4
    assert [theirs[step] for step in first] == pytest.approx([theirs[step - 1] for step in first], rel=6e-3)


def test_jagged_rates_are_relora_s_within_a_fifth_of_a_percent_of_the_peak():
    """ReLoRA's code climbs straight to the rate at the end of the climb; its first warm-up is one update behind ours."""
    curve, floor = pretraining("jagged"), 0.1

    def base(step):
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - 1000) / 9000))

    for step in range(1000, 10_000):
        climbed = step % 2000
        theirs = climbed / 50 * base(step - climbed + 50) if step >= 2000 and climbed < 50 else base(step)
        assert curve[step] == pytest.approx(theirs, abs=2e-3)


def test_without_a_warm_up_the_official_rate_goes_on_from_where_it_was():
    curve = pretraining("official_hf", warmup_steps=0)
    for begin in (2000, 4000, 6000, 8000):
        assert curve[begin] == pytest.approx(curve[begin - 1], rel=1e-3)
    assert min(curve[1000:9999]) > 0


@pytest.mark.parametrize(("every", "warmup"), [(75, 3), (250, 50), (400, 10)])
def test_the_teeth_of_the_measured_runs_keep_every_bit(every, warmup):
    train = compose(["task=uuid", "method=fft"]).task.train.model_copy(update={"schedule": "cosine"})
    restart = PAPER.model_copy(update={"every_steps": every, "warmup_steps": warmup})
    for step in range(every, 1000):
        tooth = min(1.0, (step % every) / max(1, warmup))
        assert learning_rate(step, 1000, 1.0, train, restart) == learning_rate(step, 1000, 1.0, train) * tooth
