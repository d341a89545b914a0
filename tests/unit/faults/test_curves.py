import math

import pytest

from mora.faults import curves

WHOLE = [{"step": step, "loss": 1.0, "grad_norm": 2.0, "lr": 0.1} for step in (1, 2)]


@pytest.mark.parametrize("name", ["loss", "grad_norm", "lr"])
def test_a_nan_is_a_difference_wherever_it_stands_and_two_are_none(name):
    damaged = [WHOLE[0], WHOLE[1] | {name: math.nan}]
    assert curves.compare(WHOLE, WHOLE, ended=True).difference == 0.0
    assert curves.compare(damaged, WHOLE, ended=True).difference == math.inf
    assert curves.compare(WHOLE, damaged, ended=True).difference == math.inf
    assert curves.compare(damaged, damaged, ended=True).difference == 0.0
