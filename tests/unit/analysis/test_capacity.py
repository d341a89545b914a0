"""The toys of docs/capacity.md: equal parameters, the best fits, a memory that learns, and the committed result."""

import json
import math

import pytest
import torch

from mora.adapter.operators import OPERATORS
from mora.analysis import capacity
from mora.analysis.capacity import LABELS, RESULTS, D


@pytest.mark.parametrize("r", capacity.MEMORY_RANKS)
@pytest.mark.parametrize("name", LABELS)
def test_arms_have_equally_many_parameters_and_start_with_nothing(name, r):
    arm = capacity.arm(name, r, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in arm.parameters) == 2 * r * D
    assert torch.equal(arm.forward(torch.randn(3, D)), torch.zeros(3, D))


def test_a_tied_lora_is_an_update_of_its_rank():
    arm = capacity.arm("tied_4r", 2, torch.Generator().manual_seed(0))
    arm.parameters[1].normal_()
    assert torch.linalg.matrix_rank(arm.forward(torch.eye(D))) == 8


@pytest.mark.parametrize("operator", capacity.COPYING)
def test_the_best_fit_is_that_of_least_squares(operator, monkeypatch):
    monkeypatch.setattr(capacity, "D", 16)
    target, side = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)), 8
    basis = torch.stack(
        [OPERATORS[operator](16, 16, side).delta_weight(m.view(side, side)) for m in torch.eye(side * side)]
    ).flatten(1)
    left = target.flatten() - basis.T @ torch.linalg.lstsq(basis.T, target.flatten()).solution
    share = 1 - left.square().sum() / target.square().sum()
    assert capacity.mora_fit(target, 2, operator) == pytest.approx(float(share), abs=1e-5)


def test_lora_fits_as_many_equal_singular_values_as_its_rank():
    target = capacity.teacher(16, torch.Generator().manual_seed(0))
    assert capacity.lora_fit(target, 4) == pytest.approx(0.25, abs=1e-5)
    assert capacity.lora_fit(target, 32) == pytest.approx(1, abs=1e-5)


def test_a_light_load_is_learnt_and_a_heavy_one_is_not_by_a_linear_map():
    light = capacity.remember("decouple", 2, 0.125, 0.1, 0)
    heavy = capacity.remember("decouple", 2, 4.0, 0.1, 0)
    assert light["steps"] is not None
    assert light["steps"] < 40
    assert light["accuracy"] >= 0.99
    assert heavy["steps"] is None
    assert heavy["accuracy"] < 0.5
    assert light == capacity.remember("decouple", 2, 0.125, 0.1, 0)


def test_render_without_a_measurement_says_what_to_do(tmp_path, capsys):
    assert capacity.main(["--render", "--out", str(tmp_path)]) == 2
    assert "measure first" in capsys.readouterr().err


def test_the_committed_figure_and_table_are_those_of_the_committed_measurement(tmp_path):
    (tmp_path / "capacity.json").write_text((RESULTS / "capacity.json").read_text())
    assert capacity.main(["--render", "--out", str(tmp_path)]) == 0
    for name in ("capacity.svg", "capacity.md"):
        assert (tmp_path / name).read_bytes() == (RESULTS / name).read_bytes()


def test_the_committed_measurement_is_whole_and_of_clean_source():
    measured = json.loads((RESULTS / "capacity.json").read_text())
    assert measured["source"]["dirty"] is False
    cells = {(row["arm"], row["r"], row["load"]) for row in measured["associative_memory"]}
    assert cells == {(name, r, load) for name in LABELS for r in capacity.MEMORY_RANKS for load in capacity.LOADS}
    assert all(len(row["steps"]) == len(capacity.SEEDS) for row in measured["associative_memory"])
    assert all(math.isfinite(row["share"]) for row in measured["linear_teacher"])
