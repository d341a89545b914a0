"""What a worker says of its hardware; that it trains is shown by whole runs."""

import pytest
import torch

from mora.train import worker

GIB = 2**30


@pytest.mark.parametrize(("named", "by_others_gib", "expected"), [(1, 0.8, 1), (1, 24.0, 2), (4, 24.0, 4), (4, 0.8, 4)])
def test_a_run_beside_a_program_that_nobody_named_does_not_count_as_alone(named, by_others_gib, expected, monkeypatch):
    """Its step time would be taken for that of the GPU by the plan and the tables."""
    held, total = 20 * GIB, 140 * GIB
    monkeypatch.setenv("MORA_SIDE_BY_SIDE", str(named))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: held)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (total - held - by_others_gib * GIB, total))
    assert worker._hardware(torch.device("cuda"))["runs_side_by_side"] == expected
