"""Restarts: the adapter is merged into the base, and training goes on with a new one that adds nothing (section 5.3).

The exact sum is kept in fp32 on the CPU of rank 0: the shadow. The base that the model computes with is the shadow, rounded
once, so rounding errors do not add up from restart to restart. The layers are summed one at a time on the device, since on
a CPU a 7B model would take minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Generator, Tensor, nn

from mora.choices import Groups
from mora.ranks import all_gather_value, rank

from .layers import Adapted, set_groups

MOST_DRIFT = 0.05  # of a base weight's norm; merging and unmerging an adapter 500 times in bf16 is 0.013
CHANGED = (
    "the base weight of {name} is not what the last restart left, so something else changed it, which a merge would undo: "
    "let only the adapter train; to go on from changed weights, put a new adapter on model.merge_and_unload()"
)


class RestartFailed(RuntimeError):
    """A restart did not do what it must. The run ends, since its result would be wrong."""


@dataclass
class _MergeStats:
    """How much of the update the running base took up, in sums of squares and products over all layers.

    They stay on the device until all are there, since waiting for it after each of some hundred layers would take longest.
    """

    sums: Tensor

    def add(self, old: Tensor, new: Tensor, shadow: Tensor, delta: Tensor) -> None:
        new = new.float()
        change, error = new - old.float(), new - shadow
        pairs = ((delta, delta), (delta, change), (error, error))
        self.sums += torch.stack([(a * b).sum(-1).sum(dtype=torch.float64) for a, b in pairs])

    def facts(self) -> dict[str, float]:
        update, product, error = self.sums.tolist()
        size = update or 1.0
        return {"restart_kept": product / size, "restart_rounding": (error / size) ** 0.5}


class _Postconditions:
    """Conditions that are evaluated on the device, each with the message of its failure. `broken` reads all at once."""

    def __init__(self, device: torch.device):
        self._device = device
        self._held: list[Tensor] = []
        self._otherwise: list[str] = []

    def add(self, held: Tensor, otherwise: str) -> None:
        self._held.append(held.to(self._device, non_blocking=True))
        self._otherwise.append(otherwise)

    def broken(self) -> list[str]:
        held = torch.stack(self._held).tolist() if self._held else []
        return [otherwise for ok, otherwise in zip(held, self._otherwise, strict=True) if not ok]


class RestartEngine(Protocol):
    """A model with its optimizer, as a restart sees them. `optimizer.TorchRestartEngine` documents it."""

    model: nn.Module
    device: torch.device

    def gathered(self, parameters: Sequence[nn.Parameter], write: bool = True) -> AbstractContextManager[None]: ...

    def assign(self, parameter: nn.Parameter, value: Tensor, stale_master: bool = False) -> None: ...

    def master(self, parameter: nn.Parameter) -> Tensor: ...

    def optimizer_states(self, adapter: bool) -> list[dict[str, Tensor]]: ...

    def fp32_masters(self) -> AbstractContextManager[None]: ...

    def computation_changed(self) -> None: ...


class Settings(Protocol):
    """When and how to restart.

    Attributes:
        every_steps: Updates between restarts.
        groups: The kinds of groups that a sharing operator goes through, in turn; None: always its own.
        merge_rounding: How the exact sum is rounded to the dtype of the base: "nearest" or "stochastic".
        stale_masters: Whether the optimizer's copy of the adapter stays as it was.
    """

    @property
    def every_steps(self) -> int: ...

    @property
    def groups(self) -> Any: ...

    @property
    def merge_rounding(self) -> str: ...

    @property
    def stale_masters(self) -> bool: ...


@dataclass
class Restarts:
    """The restarts of one training. All ranks must call every method.

    Attributes:
        engine: The model and its optimizer.
        settings: When and how to restart; None: never.
        layers: The layers that carry the adapter.
        seed: Decides, with `count`, everything that is drawn.
        count: Restarts so far.
        shadow: The exact merged base weights, by layer; empty on ranks other than 0.
    """

    engine: RestartEngine
    settings: Settings | None
    layers: list[Adapted]
    seed: int
    count: int = 0
    shadow: dict[str, Tensor] = field(default_factory=dict)

    @property
    def _model(self) -> PeftModel:
        assert isinstance(self.engine.model, PeftModel)
        return self.engine.model

    def due(self, done: int, last: int) -> bool:
        """Return whether a restart is due after `done` of `last` updates.

        The last update is excluded, because a restart would leave an empty adapter.
        """
        return self.settings is not None and done % self.settings.every_steps == 0 and done < last

    def apply(self) -> dict[str, float]:
        """Restart, and verify that it worked.

        Returns:
            `restart`, the number of this restart; `restart_kept`, the projection of what the running base changed on the
            update (1 is all of it); `restart_rounding`, the distance of the running base from the exact sum, over the size
            of the update; `restart_s`, the seconds that it took, with the checks.

        Raises:
            RestartFailed: A check does not hold.
        """
        assert self.settings is not None
        started, others = time.perf_counter(), self._moments_of_others()
        self.count += 1
        facts = self._merge()
        self._reinitialise()
        self._switch_groups()
        self.engine.computation_changed()
        self._check(others)
        return {"restart": float(self.count), **facts, "restart_s": round(time.perf_counter() - started, 3)}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the merged base and the kind of groups. The adapter and its moments are loaded by the engine."""
        self.count = state["count"]
        if not self.count:
            return
        noise = self._generator("noise")
        for layer in self.layers:
            with self.engine.gathered([layer.base]):
                if rank() == 0:
                    self.shadow[layer.name] = state["shadow"][layer.name].clone()
                    layer.base.data.copy_(self._cast(self.shadow[layer.name], layer.base.dtype, noise))
        self._switch_groups()

    @torch.no_grad()
    def check_base(self) -> None:
        """Check that the base is still what the last restart left. Raises RestartFailed."""
        postconditions = _Postconditions(self.engine.device)
        for layer in self.layers:
            with self.engine.gathered([layer.base], write=False):
                if rank() == 0 and layer.name in self.shadow:  # not so a layer that only a later adapter is on
                    near = _is_near(layer.base.data, self.shadow[layer.name])
                    postconditions.add(near, CHANGED.format(name=layer.name))
        self._require(postconditions)

    @torch.no_grad()
    def _merge(self) -> dict[str, float]:
        kept, noise = (
            _MergeStats(torch.zeros(3, dtype=torch.float64, device=self.engine.device)),
            self._generator("noise"),
        )
        postconditions = _Postconditions(self.engine.device)
        with self.engine.fp32_masters():
            for layer in self.layers:
                with self.engine.gathered([layer.base, *layer.adapter.values()]):
                    if rank() == 0:
                        self._merge_layer(layer, kept, noise, postconditions)
        self._require(postconditions)
        return all_gather_value(kept.facts())[0]

    def _merge_layer(
        self, layer: Adapted, kept: _MergeStats, noise: Generator, postconditions: _Postconditions
    ) -> None:
        delta, old = layer.delta_weight(), layer.base.data.clone()
        postconditions.add(torch.isfinite(delta).all(), f"the update of {layer.name} is not finite")
        before = self.shadow.get(layer.name, old).to(old.device, torch.float32)
        if layer.name in self.shadow:
            postconditions.add(_is_near(old, before), CHANGED.format(name=layer.name))
        exact = before + delta
        new = self._cast(exact, old.dtype, noise)
        kept.add(old, new, exact, delta)
        layer.base.data.copy_(new)
        took = (layer.base.data == new).all()
        postconditions.add(took, f"the base weight of {layer.name} did not take the merged values")
        if layer.name in self.shadow:
            self.shadow[layer.name].copy_(exact)  # in its own memory: new pages take longer than the copy
        else:
            self.shadow[layer.name] = exact.to("cpu", copy=True)

    def _cast(self, shadow: Tensor, dtype: torch.dtype, noise: Generator) -> Tensor:
        assert self.settings is not None
        if self.settings.merge_rounding == "stochastic" and dtype == torch.bfloat16:
            return round_stochastically(shadow.cpu(), noise).to(shadow.device)
        return shadow.to(dtype)

    @torch.no_grad()
    def _reinitialise(self) -> None:
        """Give the adapter, and its masters, the same first values on every rank; zero its moments and step."""
        assert self.settings is not None
        for layer, values in self._initial_states():
            for name, p in layer.adapter.items():
                self.engine.assign(p, values[name], stale_master=self.settings.stale_masters)
        for state in self.engine.optimizer_states(adapter=True):
            for value in state.values():
                value.zero_()

    def _initial_states(self) -> Iterator[tuple[Adapted, dict[str, Tensor]]]:
        generator = self._generator("init")
        for layer in self.layers:
            yield layer, layer.initial_state(generator)

    @property
    def groups(self) -> Sequence[Groups]:
        """The kinds of groups in turn; empty if they do not change."""
        return (self.settings.groups if self.settings else None) or ()

    def _switch_groups(self) -> None:
        if self.groups:
            set_groups(self._model, self.groups[self.count % len(self.groups)])

    def _generator(self, purpose: str) -> Generator:
        """Return a generator that depends on seed, restart and purpose alone, so that a resumed run draws the same."""
        number = {"init": 0, "noise": 1}[purpose]
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.count) * 2 + number + (1 << 48))

    def _moments_of_others(self) -> list[float]:
        """Return the sum of each tensor of the optimizer's state that a restart must leave alone."""
        states = self.engine.optimizer_states(adapter=False)
        sums = [state[key].double().sum().to(self.engine.device) for state in states for key in sorted(state)]
        return torch.stack(sums).tolist() if sums else []

    @torch.no_grad()
    def _check(self, others: list[float]) -> None:
        """Read the live tensors back and check every postcondition of a restart. Raises RestartFailed."""
        assert self.settings is not None
        device = self.engine.device
        postconditions, fingerprint = _Postconditions(device), torch.zeros((), dtype=torch.float64, device=device)
        for layer, values in self._initial_states():
            values = {name: value.to(device) for name, value in values.items()}
            with self.engine.gathered([layer.base, *layer.adapter.values()], write=False):
                postconditions.add(~layer.delta_weight().any(), f"the adapter of {layer.name} still adds to the output")
                for name, p in layer.adapter.items():
                    same = (p.data == values[name].to(p.dtype)).all()
                    postconditions.add(same, f"{name} of {layer.name} does not have its first values")
                    fingerprint += p.double().sum()
                fingerprint += layer.base.double().sum()
            if self.settings.stale_masters:
                continue
            for name, p in layer.adapter.items():
                master = self.engine.master(p).to(device)
                renewed = (master == values[name].to(master.dtype)).all()
                postconditions.add(renewed, f"the optimizer's copy of {name} of {layer.name} was not renewed")
        for state in self.engine.optimizer_states(adapter=True):
            for value in state.values():
                postconditions.add(~value.any(), "moments or step of the adapter are not zero")
        unchanged = torch.tensor(self._moments_of_others() == others)
        postconditions.add(unchanged, "moments of parameters outside the adapter were changed")
        self._require(postconditions)
        fingerprints = all_gather_value(float(fingerprint))
        if len(set(fingerprints)) > 1:
            raise RestartFailed(f"restart {self.count}: the ranks hold different weights: sums {fingerprints}")

    def _require(self, postconditions: _Postconditions) -> None:
        """Raise RestartFailed on every rank if a condition fails on one of them, for which the others would wait."""
        if broken := [broken for of_rank in all_gather_value(postconditions.broken()[:1]) for broken in of_rank]:
            raise RestartFailed(f"restart {self.count}: {broken[0]}")


def describe(facts: dict[str, float]) -> str:
    """Format what `Restarts.apply` returns as a line for people."""
    return (
        f"restart {facts['restart']:.0f} in {facts['restart_s']:.1f} s; the base kept {facts['restart_kept']:.4f} of the "
        f"update; it is off the exact sum by {facts['restart_rounding']:.2g} of the update"
    )


def _is_near(base: Tensor, shadow: Tensor) -> Tensor:
    """Return, as a scalar tensor, whether a base weight differs from its shadow by no more than rounding does."""
    shadow = shadow.to(base.device, torch.float32)
    return (base.float() - shadow).norm() <= MOST_DRIFT * shadow.norm()


def round_stochastically(values: Tensor, generator: Generator) -> Tensor:
    """Round fp32 to bf16, up or down with the probabilities that keep the expected value. The tensors are on the CPU."""
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, generator=generator)
    return ((values.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)
