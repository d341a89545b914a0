"""The typed configuration of a run: composed by Hydra, validated here. No torch."""

from .compose import ConfigError, compose
from .run_id import run_id
from .schema import RunConfig

__all__ = ["ConfigError", "RunConfig", "compose", "run_id"]
