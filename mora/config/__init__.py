"""The typed configuration of a run: composed by Hydra, validated here. No torch, and no Hydra until `compose` is called."""

from __future__ import annotations

from collections.abc import Sequence

from mora.errors import ConfigError

from .run_id import run_id
from .schema import RunConfig

__all__ = ["ConfigError", "RunConfig", "compose", "run_id"]


def compose(overrides: Sequence[str]) -> RunConfig:
    """Return the run that `python run.py OVERRIDES` would start.

    Raises:
        ConfigError: A file, field or value of them is not there or does not fit.
    """
    from . import hydra_compose

    return hydra_compose.compose(overrides)
