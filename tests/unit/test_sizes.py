"""The side of M that the parameters of LoRA allow."""

from __future__ import annotations

import itertools

import pytest

from mora.sizes import r_hat_for


@pytest.mark.parametrize(
    ("in_features", "out_features", "r", "floor", "official"),
    [
        (4096, 4096, 8, 256, 256),  # LLaMA-2-7B attention, section 4 of the paper
        (4096, 4096, 128, 1024, 1024),  # section 4 of the paper
        (4096, 4096, 256, 1448, 1448),
        (11008, 4096, 8, 347, 348),  # LLaMA-2-7B FFN
        (4096, 11008, 8, 347, 348),
        (768, 2560, 128, 652, 653),  # 250M FFN
        (576, 576, 1, 33, 34),
    ],
)
def test_square_size_has_the_value_worked_out_by_hand(in_features, out_features, r, floor, official):
    assert r_hat_for(in_features, out_features, r) == floor
    assert r_hat_for(in_features, out_features, r, rounding="official") == official


def test_square_size_is_the_largest_square_within_the_budget_of_lora():
    for in_features, out_features, r in itertools.product((1, 20, 577, 4096), (3, 64, 11008), (1, 7, 8, 256)):
        budget = (in_features + out_features) * r
        r_hat = r_hat_for(in_features, out_features, r)
        assert r_hat**2 <= budget < (r_hat + 1) ** 2


def test_even_square_size_rounds_down_after_the_chosen_rounding_and_is_at_least_two():
    assert r_hat_for(11008, 4096, 8, even=True) == 346
    assert r_hat_for(11008, 4096, 8, rounding="official", even=True) == 348
    assert r_hat_for(4096, 4096, 8, even=True) == 256
    assert r_hat_for(1, 1, 1, even=True) == 2
