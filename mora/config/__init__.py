"""The typed configuration of a run, composed by Hydra and validated here. Imports no torch, and Hydra only in `compose`."""

from __future__ import annotations

from collections.abc import Sequence

from mora.errors import ConfigError

from .run_id import run_id
from .schema import RunConfig

__all__ = ["ConfigError", "RunConfig", "compose", "run_id"]


def compose(overrides: Sequence[str]) -> RunConfig:
    """Return the run that `python run.py OVERRIDES` would start.

    Raises:
        ConfigError: A file or field that they name does not exist, or a value does not fit.
    """
    from . import hydra_compose

    return hydra_compose.compose(overrides)
