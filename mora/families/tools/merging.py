"""A model as its merged checkpoint would compute, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


@contextmanager
def merged(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Context manager: the model computes as its merged checkpoint in `dtype` would: adapters added, everything rounded.

    Afterwards every weight has its former bits at its former address: subtracting the update would round again.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    adapted = {id(p) for layer in layers for p in layer.parameters()}
    wider = [(p, p.data) for p in model.parameters() if id(p) not in adapted and p.dtype != dtype]
    bases = [p for layer in layers for p in layer.get_base_layer().parameters(recurse=False)]
    kept = [(p, p.data, p.data.to("cpu", copy=True)) for p in bases]
    if isinstance(model, PeftModel):
        model.merge_adapter()
    for p, value in wider:
        p.data = value.to(dtype)
    try:
        yield
    finally:
        if isinstance(model, PeftModel):
            model.unmerge_adapter()
        for p, at_home, rounded in kept:
            p.data = at_home
            p.data.copy_(rounded)
        for p, at_home in wider:
            p.data = at_home
