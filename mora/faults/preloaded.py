"""What the fork server imports and does once, so that none of its forks does it again."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from contextlib import suppress

from mora.imports import uncollected

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # and torch's compiler: two seconds of every engine otherwise
    "hydra",
    "lm_eval.evaluator",
    "lm_eval.tasks",
    "mora.config.hydra_compose",
    "mora.evaluate.backend",
    "mora.evaluate.score_checkpoint",
    "mora.families.tools.targets",
    "mora.suite.__main__",
    "mora.train.worker",
    "mora.train.zero",
)


def _rehearse() -> None:
    """Fill the caches of Hydra, PEFT and DeepSpeed, which a run's first configuration, adapter and engine would fill."""
    import torch

    from mora.config import compose
    from mora.methods import prepare
    from mora.models.load import load_model

    torch.set_num_threads(1)  # a fork has none of its parent's threads
    config = compose(["task=uuid", "scale=smoke", "method=mora", "r=4"])
    prepare(load_model(config.model, "fp32")[0], config)
    if "deepspeed" in sys.modules:
        _ = sys.modules["deepspeed"].ops.__compatible_ops__  # which asks compilers


if folder := os.environ.get("MORA_PRELOAD_PATH"):  # Python 3.11's server is given sys.path, and leaves it as it is
    sys.path.append(folder)
with uncollected():
    for package in PACKAGES:
        with suppress(ImportError):  # of DeepSpeed, which one process does without
            importlib.import_module(package)
    _rehearse()
    gc.collect()  # what the rehearsal left, which no fork needs
