"""What `${NAME:...}` of configs/ gives, besides OmegaConf's own. Registered when this is imported."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def _restart_warmup(every_steps: Any) -> int:
    """Return ${restart_warmup:N} of configs/method/: 50 steps, as in the paper, but at most 5% of the interval, its largest.

    Of what is no number of steps 0: the check of every_steps says what is wrong.
    """
    return min(50, every_steps // 20) if isinstance(every_steps, int) else 0


def _of_model(field: str, otherwise: Any, *, _root_: DictConfig) -> Any:
    """Return ${of_model:FIELD,VALUE} of configs/method/: what the model says, else the method's own value."""
    own = OmegaConf.select(_root_, f"model.{field}")
    return otherwise if own is None else own


OmegaConf.register_new_resolver("restart_warmup", _restart_warmup, replace=True)
OmegaConf.register_new_resolver("of_model", _of_model, replace=True)
