"""A model and its optimizer as a restart sees them under DeepSpeed ZeRO, which splits the optimizer, or the weights too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from mora.ranks import broadcast, rank, world_size

from .optimizer import ParameterGroup, exchanged

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroRestartEngine:
    """Like `optimizer.TorchRestartEngine`, over DeepSpeed's ZeRO optimizer `zero`.

    `groups` are its parameter groups, in its order.
    """

    def __init__(self, model: nn.Module, zero: Any, groups: Sequence[ParameterGroup], stage: int, device: torch.device):
        self.model, self.groups, self.stage, self.device = model, list(groups), stage, device
        self._zero, self._shows_masters = zero, False

    def computation_changed(self) -> None:
        """Do nothing: no forward pass is recorded here."""

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter], write: bool = True) -> Iterator[None]:
        split = [p for p in parameters if hasattr(p, "ds_id")]
        masters = {p: self.master(p) for p in parameters if p.requires_grad and self._shows_masters}
        with deepspeed.zero.GatheredParameters(split, modifier_rank=0 if write else None, enabled=bool(split)):
            with exchanged(masters):
                yield
            if write and not split:
                for p in parameters:
                    broadcast(p.data)

    def assign(self, parameter: nn.Parameter, value: Tensor, stale_master: bool = False) -> None:
        with self.gathered([parameter]):
            parameter.data.copy_(value)
        if not stale_master and parameter.requires_grad:
            self._set_master(parameter, value.to(self.device, torch.float32))

    def _set_master(self, parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
        """Set this rank's part of the master or a moment. DeepSpeed's own call fails if the ranks do not divide the size."""
        if self.stage < 3:
            parameter.set_full_hp_param(value, moment)  # type: ignore[attr-defined]
            return
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, size * world_size() - value.numel()))
        self._zero.set_local_hp_param(padded.narrow(0, size * rank(), size), parameter, moment)

    def master(self, parameter: nn.Parameter) -> Tensor:
        if parameter.requires_grad:
            return safe_get_full_fp32_param(parameter)
        with self.gathered([parameter], write=False):
            return parameter.detach().clone()

    def optimizer_states(self, adapter: bool) -> list[dict[str, Tensor]]:
        states = self._zero.optimizer.state
        return [states[flat] for flat, group in self._flat_groups() if group.adapter == adapter and flat in states]

    def _flat_groups(self) -> list[tuple[nn.Parameter, ParameterGroup]]:
        """Return this rank's flat fp32 tensors, as the inner optimizer sees them, each with its group."""
        if self.stage < 3:
            return list(zip(self._zero.single_partition_of_fp32_groups, self.groups, strict=True))
        owner = self._zero.sub_group_to_group_id
        return [(flat, self.groups[owner[i]]) for i, flat in enumerate(self._zero.fp32_partitioned_groups_flat)]

    @contextmanager
    def fp32_masters(self) -> Iterator[None]:
        """Context manager: `gathered` shows the masters of parameters that train; what is written into them is lost."""
        self._shows_masters = True
        try:
            yield
        finally:
            self._shows_masters = False
