"""S and T, written out: what they multiply to, and what they hold."""

from __future__ import annotations

import pytest
import torch

from mora.adapter import OPERATORS, products

CPU = torch.device("cpu")


@pytest.mark.parametrize("overflow", ["drop", "fold"])
@pytest.mark.parametrize("pad", ["circular", "zeros"])
@pytest.mark.parametrize("shape", [(50, 26, 8), (26, 50, 8), (32, 24, 8)], ids=str)
@pytest.mark.parametrize("name", list(OPERATORS))
def test_around_M_they_give_the_delta_weight(name, shape, pad, overflow, monkeypatch):
    monkeypatch.setattr(products, "ROWS", 7)
    products._made.cache_clear()
    operator = OPERATORS[name](*shape, pad=pad, overflow=overflow)
    K, D, R = shape
    M = torch.randn(R, R, dtype=torch.float64)
    S, T = products.matrices(operator, R, CPU, torch.float64)
    n = S.shape[1] // R
    delta = torch.einsum("nrd,rc,knc->dk", T.view(n, R, D), M, S.view(K, n, R))
    torch.testing.assert_close(delta, operator.delta_weight(M))
    for block in (*S.view(K, n, R).unbind(1), *T.view(n, R, D)):
        assert block.any(), "a block that reads or reaches nothing"
    wider, taller = products.matrices(operator, R + 3, CPU, torch.float64)
    assert torch.equal(wider.view(K, n, R + 3)[..., :R].flatten(1), S)
    assert not wider.view(K, n, R + 3)[..., R:].any()
    assert not taller.view(n, R + 3, D)[:, R:].any()
