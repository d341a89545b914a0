"""The section `method` of a run's configuration. Its adapters are in mora/families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import Field, NonNegativeInt, PositiveInt

from mora.choices import Groups, MergeRounding
from mora.families import Family, families
from mora.frozen import FrozenModel

if TYPE_CHECKING:
    AnyFamily = Family
else:
    AnyFamily = Annotated[Union[tuple(families().values())], Field(discriminator="kind")]  # noqa: UP007  as many as there are


class Restart(FrozenModel):
    """Merging the adapter into the base weights every so often, and starting it again from its first state.

    Read by `mora/train/restart.py` and `mora/restarts`.
    """

    every_steps: PositiveInt
    """Updates between restarts."""
    warmup_steps: NonNegativeInt
    """Updates after a restart in which the learning rate climbs from 0 back to its schedule."""
    schedule: Literal["jagged", "official_hf"]
    """jagged: the schedule goes on underneath. official_hf: a new cosine over the steps left begins at the last rate. In the
    official code the first update after a restart still has that last rate; here it has 0 with both."""
    groups: Annotated[list[Groups], Field(min_length=1)] | None
    """The kinds of groups that a sharing operator goes through, one per life of the adapter; null: always its own."""
    merge_rounding: MergeRounding
    """How the exact sum becomes a weight in the dtype of the base."""
    stale_masters: bool
    """Leave the optimizer's fp32 copy of the adapter as it was, so that it comes back with the next update: what the
    official code does under DeepSpeed."""


class Method(FrozenModel):
    """What trains. Read by `mora/methods`."""

    name: str
    """The name in run ids and tables."""
    result_version: PositiveInt
    """Raised by hand when the method's behaviour changes. Part of the run id."""
    trains: bool
    """false: the model is only evaluated."""
    lr_grid: Literal["fft", "lora_like", "mora"] | None
    """Which of the task's search spaces is the method's; null if nothing trains."""
    adapter: AnyFamily | None
    """The adapter; null for full fine-tuning, and if nothing trains."""
    restart: Restart | None
    """How the adapter is merged and started again; null: never."""
    config: str | None = None
    """Method peft alone: the path that its settings were read from. Not part of the run id, which has the settings."""

    @property
    def label(self) -> str:
        """Return the name as run ids have it. For method peft, it includes the kind."""
        return self.name if self.adapter is None else self.adapter.label(self.name)

    @property
    def has_rank(self) -> bool:
        """Return whether r decides the size of the adapter. For some of PEFT's methods, their settings decide it."""
        return self.adapter is not None and self.adapter.has_rank

    @property
    def step_family(self) -> str:
        """Return a name that is shared by methods whose steps cost the same."""
        return self.name if self.adapter is None else self.adapter.step_family
