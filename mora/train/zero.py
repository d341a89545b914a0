"""The engine in DeepSpeed: ZeRO-1, 2 and 3.

The precision policy is that of `TorchEngine`: trained parameters are rounded to the compute dtype, and ZeRO keeps fp32
masters of them and sums gradients in fp32. DeepSpeed's bf16 switch stays off, since it would choose another optimizer for
stage 1; without it, ZeRO takes its dtype from the parameters that it is given. A restart must renew the masters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

from mora.config.train_schema import Train
from mora.data.batches import Batch
from mora.methods import ParameterGroup
from mora.models.losses import token_losses
from mora.restarts.optimizer import exchanged
from mora.restarts.zero import MOMENTS, ZeroRestartEngine

from .distributed import rank, world_size
from .engine import round_frozen


class ZeroEngine(ZeroRestartEngine):
    """`TorchEngine` with the optimizer (from stage 1 on) and the weights (stage 3) split over the ranks."""

    def __init__(
        self,
        model: nn.Module,
        train: Train,
        compute_dtype: torch.dtype,
        groups: Sequence[ParameterGroup],
        stage: int,
        offload: bool = False,
    ):
        self.device = next(model.parameters()).device
        if self.device.type == "cpu":  # or DeepSpeed compiles an extension for shared memory at first use
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if not dist.is_initialized():  # there is one process: for offloading, and to try this code
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            os.environ.setdefault("LOCAL_RANK", "0")
        self.parameters = {name: p for group in groups for name, p in group.parameters.items()}
        self._frozen = round_frozen(model, compute_dtype)
        first = {p: p.detach().float().clone() for p in self.parameters.values() if compute_dtype != torch.float32}
        for p in self.parameters.values():
            p.data = p.data.to(compute_dtype)
        self.max_grad_norm = train.max_grad_norm
        optimizer = torch.optim.AdamW(
            [{"params": list(g.parameters.values())} for g in groups],
            lr=0.0,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_eps,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=settings(stage, offload, train.max_grad_norm),
            dist_init_required=False,
        )
        super().__init__(model, self.engine.optimizer, groups, stage, self.device)
        self._make_states()
        for p, value in first.items():
            self._set_master(p, value)

    def _make_states(self) -> None:
        """Make AdamW's states, all zero.

        Stages 1 and 2 would make them in the first update, which is too late to load a checkpoint into them. Stage 3 makes
        them in an extra update, which must not count as a step.
        """
        for flat, _ in self._flat_groups():
            self._zero.optimizer.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                **{key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS},
            }
        if self.stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()

    def backward(self, batch: Batch, loss_tokens: int) -> Tensor:
        tokens = torch.full((), float(loss_tokens), device=self.device)  # a GPU divides otherwise by a number
        loss = token_losses(self.engine, batch.to(self.device)).sum() / tokens
        self.engine.backward(loss * world_size(), scale_wrt_gas=False)  # DeepSpeed averages over the ranks
        return loss.detach()

    def step(self, lr: float, max_grad_norm: float) -> Tensor:
        if max_grad_norm != self.max_grad_norm:
            raise ValueError(f"max_grad_norm={max_grad_norm}: DeepSpeed was set up with {self.max_grad_norm}")
        for group, ours in zip(self._zero.param_groups, self.groups, strict=True):
            group["lr"] = lr * ours.lr_scale
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm(), device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return whole tensors, which are gathered one by one. Only rank 0 keeps them, on the CPU."""
        weights: dict[str, Tensor] = {}
        optimizer: dict[str, dict[str, Tensor]] = {}
        for group in self.groups:
            step = next(
                self._zero.optimizer.state[flat]["step"] for flat, owner in self._flat_groups() if owner is group
            )
            for name, p in group.parameters.items():
                values = [safe_get_full_fp32_param(p), *(safe_get_full_optimizer_state(p, key) for key in MOMENTS)]
                if rank() == 0:
                    weights[name], *moments = (value.detach().to("cpu", copy=True) for value in values)
                    optimizer[name] = {"step": step.to("cpu", copy=True), **dict(zip(MOMENTS, moments, strict=True))}
        return {"weights": weights, "optimizer": optimizer}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, p in self.parameters.items():
            self.assign(p, state["weights"][name])
        for group in self.groups:
            for name, p in group.parameters.items():
                for key in MOMENTS:
                    self._set_master(p, state["optimizer"][name][key].to(self.device), key)
        for flat, group in self._flat_groups():
            first = next(iter(group.parameters))
            self._zero.optimizer.state[flat]["step"].fill_(float(state["optimizer"][first]["step"]))

    @contextmanager
    def materialized(self) -> Iterator[None]:
        """Context manager: every rank holds the whole model, unrounded, and computes with it as with a plain model."""
        masters = {p: self.master(p) for p in self.parameters.values()} | self._frozen
        if self.stage < 3:
            with exchanged(masters):
                yield
            return
        # The hooks would split a layer again after its use, and may communicate with other ranks before a forward pass.
        hooks = self._zero.parameter_offload
        with deepspeed.zero.GatheredParameters(list(self.model.parameters())), exchanged(masters):
            for hook in [hooks.fwd_pre_hook, *hooks.forward_hooks, *hooks.backward_hooks]:
                hook.remove()
            hooks.forward_hooks, hooks.backward_hooks = [], []
            for p in self.model.parameters():
                p.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
            try:
                yield
            finally:
                hooks.setup_zero_stage3_hooks()


def settings(stage: int, offload: bool, max_grad_norm: float) -> dict[str, Any]:
    """Return DeepSpeed's configuration. It splits and clips; accumulation, learning rate and precision are left to us."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "contiguous_gradients": True}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed requires a number; nothing that we use depends on it
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 60,
    }
