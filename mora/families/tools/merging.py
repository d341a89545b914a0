"""A model as its checkpoint would compute, for a while: merged, or with its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

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
    bases = [p for layer in layers for p in layer.get_base_layer().parameters(recurse=False)]
    kept = [(p, p.data, p.data.to("cpu", copy=True)) for p in bases]
    if isinstance(model, PeftModel):
        model.merge_adapter()
    try:
        with _in_dtype([p for p in model.parameters() if id(p) not in adapted], dtype):
            yield
    finally:
        if isinstance(model, PeftModel):
            model.unmerge_adapter()
        for p, at_home, bits in kept:
            p.data = at_home
            p.data.copy_(bits)


def rounded(model: nn.Module, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Context manager: the model computes as its checkpoint in `dtype` would, with its adapter beside the base."""
    return _in_dtype(list(model.parameters()), dtype)


@contextmanager
def _in_dtype(parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """Context manager: the parameters are rounded to `dtype`; afterwards they have their values and addresses again."""
    wider = [(p, p.data) for p in parameters if p.dtype != dtype]
    for p, value in wider:
        p.data = value.to(dtype)
    try:
        yield
    finally:
        for p, value in wider:
            p.data = value
