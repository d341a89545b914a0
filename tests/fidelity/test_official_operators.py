"""Our operators against float64 inputs and outputs recorded from the official code (github.com/kongds/MoRA at de5df31).

The file holds, for each case `type{T}.in{I}.out{O}.rhat{R}`, M (R, R), x (2, 5, I), y (2, 5, O) of `_apply_mora` and
delta (O, I) of `get_delta_weight`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mora.adapter import operators
from mora.adapter.operators import OPERATORS, Operator

FILE = Path(__file__).with_name("official_operators.safetensors")
OFFICIAL_TYPES = {
    1: ("sharing", "modulo"),
    2: ("sharing", "contiguous"),
    3: ("sharing", "contiguous-modulo"),
    4: ("sharing", "modulo-contiguous"),
    6: ("rotation", "modulo"),
}
EXACT = 1e-12


def recorded_cases() -> list[str]:
    with safe_open(FILE, "pt") as file:
        return sorted({key.rpartition(".")[0] for key in file.keys()})


SHARING = [case for case in recorded_cases() if not case.startswith("type6.")]
ROTATION = [case for case in recorded_cases() if case.startswith("type6.")]


def largest_errors(case: str) -> tuple[float, float]:
    """How far our forward pass and our delta_weight are from the recorded ones."""
    official_type, in_features, out_features, r_hat = map(int, re.findall(r"\d+", case))
    name, groups = OFFICIAL_TYPES[official_type]
    operator: Operator = OPERATORS[name](in_features, out_features, r_hat, groups=groups)
    with safe_open(FILE, "pt") as file:
        M, x, y, delta = (file.get_tensor(f"{case}.{part}") for part in ("M", "x", "y", "delta"))
    assert {t.dtype for t in (M, x, y, delta)} == {torch.float64}
    ours = operator.decompress(operator.compress(x) @ M.T)
    assert ours.shape == y.shape
    return (ours - y).abs().max().item(), (operator.delta_weight(M) - delta).abs().max().item()


def official_rotation_table(n_blocks: int, r_hat: int, device: torch.device, dtype: torch.dtype):
    """The official tables: angles, cosines and sines in fp32."""
    inv_freq = 1.0 / (10000 ** (torch.arange(0, r_hat, 2).float() / r_hat))
    freqs = torch.outer(torch.arange(n_blocks).float(), inv_freq)
    return freqs.cos().to(device, dtype), freqs.sin().to(device, dtype)


def test_every_official_type_was_recorded_for_every_kind_of_shape():
    shapes = {(case.partition(".")[0], *map(int, re.findall(r"\d+", case)[1:3])) for case in recorded_cases()}
    assert {kind for kind, *_ in shapes} == {f"type{t}" for t in OFFICIAL_TYPES}
    for kind in OFFICIAL_TYPES:
        widths = [(i, o) for k, i, o in shapes if k == f"type{kind}"]
        assert {(i > o) - (i < o) for i, o in widths} == {-1, 0, 1}


@pytest.mark.parametrize("case", SHARING)
def test_sharing_equals_the_official_code(case):
    forward, delta = largest_errors(case)
    assert forward < EXACT
    assert delta < EXACT


@pytest.mark.parametrize("case", ROTATION)
def test_rotation_equals_the_official_code_when_given_its_fp32_tables(case, monkeypatch):
    monkeypatch.setattr(operators, "rotation_table", official_rotation_table)
    forward, delta = largest_errors(case)
    assert forward < EXACT
    assert delta < EXACT


@pytest.mark.parametrize("case", ROTATION)
def test_rotation_with_exact_tables_differs_from_the_official_code_by_its_fp32_rounding_only(case):
    forward, delta = largest_errors(case)
    assert forward < 1e-6
    assert delta < 1e-6
