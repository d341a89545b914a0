"""The resolvers `${NAME:...}` of configs/ that OmegaConf does not have. Importing this module registers them."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def _restart_warmup(every_steps: Any) -> int:
    """Return ${restart_warmup:N} of configs/method/: the paper's 50 steps, but at most 5% of the interval.

    5% is the largest share that the paper has. For what is not a number of steps the result is 0, since the check of
    every_steps then says what is wrong.
    """
    return min(50, every_steps // 20) if isinstance(every_steps, int) else 0


def _of_model(field: str, otherwise: Any, *, _root_: DictConfig) -> Any:
    """Return ${of_model:FIELD,VALUE} of configs/method/: the model's field if it is set, else the method's own value."""
    own = OmegaConf.select(_root_, f"model.{field}")
    return otherwise if own is None else own


OmegaConf.register_new_resolver("restart_warmup", _restart_warmup, replace=True)
OmegaConf.register_new_resolver("of_model", _of_model, replace=True)
