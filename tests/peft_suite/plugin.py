"""Runs PEFT's own tests of custom models on MoRA: `make peft-tests`. A pytest plugin over PEFT's source distribution.

PEFT parametrises its tests by lists of (name, model, config class, settings); these are exchanged for MoRA's before pytest
reads them.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from mora import MoraConfig

if importlib.util.find_spec("diffusers") is None:  # whose name PEFT's helpers import and our tests do not need
    sys.modules["diffusers"] = ModuleType("diffusers")
    sys.modules["diffusers"].__spec__ = ModuleSpec("diffusers", None)
    sys.modules["diffusers"].StableDiffusionPipeline = object  # type: ignore[attr-defined]

OPERATORS = ("auto", "truncation", "sharing", "decouple", "rotation")

ONE, BOTH = {"r": 2, "target_modules": ["lin0"]}, {"r": 1, "target_modules": ["lin0", "lin1"], "operator": "sharing"}
SETTINGS = {
    **{f"MLP {operator}": ONE | {"operator": operator} for operator in OPERATORS},
    "MLP name": ONE | {"target_modules": "lin0"},
    "MLP lin1": BOTH | {"target_modules": ["lin1"]},
    "MLP both": BOTH,
    "MLP saved": ONE | {"modules_to_save": ["lin1"]},
    "MLP dropout": ONE | {"mora_dropout": 0.1},
    "MLP pattern": BOTH | {"r": 4, "rank_pattern": {"lin1": 1}},
    "MLP dropped": ONE | {"operator": "rotation", "overflow": "drop"},
    "Conv1D": BOTH | {"target_modules": ["conv1d"]},
}
CASES = [(name, "EmbConv1D" if name == "Conv1D" else "MLP", MoraConfig, given) for name, given in SETTINGS.items()]
SEVERAL = [
    ("MoRA Same", "mora", MoraConfig, {"r": 2, "target_modules": ["lin0"], "init_weights": False},
     {"r": 2, "target_modules": ["lin0"], "init_weights": False}),
    ("MoRA Different", "mora", MoraConfig, {"r": 2, "target_modules": ["lin0"], "init_weights": False},
     {"r": 1, "target_modules": ["lin1"], "operator": "sharing", "init_weights": False}),
]  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The lists that PEFT's decorators hold are those of the module: they are changed in place."""
    module = metafunc.module
    if getattr(module, "mora_cases", False) or not hasattr(module, "TEST_CASES"):
        return
    module.mora_cases = True
    module.TEST_CASES[:] = CASES
    module.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = SEVERAL
    module.ALL_PEFT_CONFIG_CLASSES[:] = [MoraConfig]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only tests that were given a MoRA configuration are PEFT's tests of MoRA."""
    items[:] = [item for item in items if MoraConfig in getattr(getattr(item, "callspec", None), "params", {}).values()]


@pytest.fixture(autouse=True)
def fp32_rounding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow what fp32 rounds: FSDP moves weights to other addresses, where a CPU may take another kernel.

    A log-probability near 0 is the difference of two numbers near 7: one CPU gave -6.0433e-4 and -6.0421e-4; PEFT's
    tests allow 1e-8.
    """
    if "fsdp_wrapped" in request.node.name:
        monkeypatch.setattr(torch, "allclose", partial(torch.allclose, atol=1e-6))
