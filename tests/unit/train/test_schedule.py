import pytest

from mora.config import compose
from mora.train.schedule import learning_rate


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
