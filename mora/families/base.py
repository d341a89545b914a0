"""The base class of the kinds of adapters: everything that the suite asks of one. Imports torch only to make an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator

from mora.errors import ConfigError
from mora.frozen import FrozenModel

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn

    from mora.restarts.layers import Adapted


def _module_names(value: Any) -> Any:
    names = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    if value is not None and value != "all-linear" and not names:
        raise ValueError("expected all-linear, or names of modules in brackets: [q_proj,v_proj]")
    return value


Targets = Annotated[list[str] | Literal["all-linear"], BeforeValidator(_module_names)]


class Size(NamedTuple):
    """The size of a run's adapters, and the modules that carry them. `rank_pattern`: kind of module -> a rank of its own."""

    r: int | None
    lora_alpha: float | None
    target_modules: Targets
    rank_pattern: dict[str, int]


@dataclass(frozen=True)
class Footprint:
    """What the adapter of one module costs.

    Attributes:
        parameters: Parameters that train.
        products: Multiply-adds per token.
        saved: Numbers per token that are kept for the backward pass, beyond what the base keeps.
        keeps_input: Whether the backward pass needs the module's input, too. Modules that read the same input keep it once.
        frozen: Parameters that do not train.
        ignored: Inputs that can never change the output.
    """

    parameters: int
    products: int
    saved: float
    keeps_input: bool
    frozen: int = 0
    ignored: int = 0


class Family(FrozenModel):
    """A kind of adapter: the section `method.adapter` of a configuration, and the code behind it.

    A subclass with a `kind` of its own, in a file of this package, is all that a new kind of adapter needs. Its fields are
    the section's fields. The methods below have defaults that fit an adapter of which nothing more is known.
    """

    has_rank: ClassVar[bool] = True
    """Whether r decides the size of the adapter."""
    captures_graphs: ClassVar[bool] = True
    """Whether a step with its layers may become a CUDA graph."""
    has_known_cost: ClassVar[bool] = False
    """Whether `footprint` is implemented."""

    kind: str
    """The kind of adapter: a file of `mora/families`."""

    @property
    def step_family(self) -> str:
        """Return a name that is shared by adapters whose steps cost the same."""
        return self.kind

    @property
    def remarks(self) -> list[str]:
        """Return what a list of runs shows of the adapter beside method, rank and learning rate."""
        return []

    @property
    def dropouts(self) -> dict[str, Any]:
        """Return the dropout settings that are not zero."""
        return {name: value for name, value in self.model_dump().items() if "dropout" in name and value}

    def label(self, method: str) -> str:
        """Return the method's name in run ids."""
        return method

    @property
    def modules(self) -> Targets:
        """Return the modules that carry adapters: those of the field `target_modules`, else all linear modules."""
        return getattr(self, "target_modules", None) or "all-linear"

    def search_spaces(self, name: str) -> list[str]:
        """Return keys of a task's search spaces in order of preference. `name` is the method's own key."""
        return [name]

    def operator_for(self, hidden_size: int, r: int) -> str | None:
        """Return MoRA's operator in a model of that width, with "auto" resolved; None for other adapters."""
        return None

    def footprint(self, in_features: int, out_features: int, r: int, hidden_size: int, number_bytes: int) -> Footprint:
        """Return what one module's adapter costs, from sizes alone. An activation has `number_bytes` per number."""
        raise ConfigError(f"method.adapter.kind={self.kind}: the cost of its adapter is unknown")

    def check_restarts(self, method: str, groups: list[str] | None) -> None:
        """Raise ValueError if a restart cannot merge this adapter, or has no such `groups`."""
        raise ValueError(
            f"method.restart: {method} has no adapter whose update a restart knows to add to the base weights"
        )

    def wrap(self, model: nn.Module, size: Size, seed: int) -> PeftModel:
        """Return the PEFT model of `model`, initialised by torch's global seed and `seed`.

        Raises:
            ConfigError: A target is the name of no linear module, there is no linear module at all, or r exceeds the rank
                of every module.
        """
        from peft import get_peft_model

        from .tools.targets import check_rank, targeted

        check_rank(size.r or 0, targeted(model, size.target_modules))
        adapted = get_peft_model(model, self.peft_config(size))  # type: ignore[arg-type]
        self.after_wrapping(adapted, seed)
        return adapted

    def peft_config(self, size: Size) -> PeftConfig:
        """Return the configuration from which PEFT makes the adapters."""
        raise NotImplementedError

    def after_wrapping(self, model: PeftModel, seed: int) -> None:
        """Change what PEFT has no option for. `seed` decides everything that is drawn."""

    def lr_scale(self, name: str, dimensions: int) -> float:
        """Return the learning rate of the parameter `name`, which has so many dimensions, divided by the run's."""
        return 1.0

    def restarted_layers(self, model: PeftModel) -> list[Adapted]:
        """Return every adapted layer as restarts see it: what trains, its update and its initial state.

        Raises:
            ConfigError: The model has an adapted layer of another kind.
        """
        raise NotImplementedError
