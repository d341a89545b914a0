"""What a result says of the hardware and software of its run."""

import platform
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from tiny_runs import tiny_config

from mora.train import run_environment
from mora.train.run_environment import hardware_facts, others_hold_memory, versions

GIB = 2**30
CONFIG = tiny_config("mora")


@pytest.mark.parametrize(("by_others_gib", "expected"), [(0.8, False), (24.0, True)])
def test_memory_that_others_hold_on_the_gpu_is_seen(by_others_gib, expected, monkeypatch):
    """A step beside them would be taken for one that had the GPU to itself, by the plan and the tables."""
    held, total = 20 * GIB, 140 * GIB
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: held)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (total - held - by_others_gib * GIB, total))
    assert others_hold_memory(torch.device("cuda")) is expected
    assert not others_hold_memory(torch.device("cpu"))


@pytest.mark.parametrize(("named", "shared", "expected"), [(1, False, 1), (1, True, 2), (4, True, 4), (4, False, 4)])
def test_a_run_beside_a_program_that_nobody_named_does_not_count_as_alone(named, shared, expected, monkeypatch):
    monkeypatch.setenv("MORA_SIDE_BY_SIDE", str(named))
    assert hardware_facts(CONFIG, torch.device("cpu"), shared)["runs_side_by_side"] == expected


def test_a_result_names_python_cuda_and_what_else_is_installed(monkeypatch):
    def version(package):
        if package == "deepspeed":
            raise PackageNotFoundError(package)
        return f"1.0 of {package}"

    monkeypatch.setattr(run_environment, "version", version)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = versions()
    assert (found["python"], found["cuda"]) == (platform.python_version(), "13.0")
    assert (found["torch"], found["triton"]) == ("1.0 of torch", "1.0 of triton")
    assert "deepspeed" not in found
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "cuda" not in versions()
