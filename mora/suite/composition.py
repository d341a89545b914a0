"""Many configurations in little time: Hydra composes each choice of groups once, and a cell's values are set on a copy.

What a cell's overrides give is what `mora.config.compose` gives for them; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mora.config import ConfigError, RunConfig
from mora.config.compose import CONFIG_DIR, one_line, validate

METHOD_ALONE = "task=uuid"  # any task: a method's file sets the section `method` and nothing else


def compose(overrides: Sequence[str]) -> RunConfig:
    """The run that `python run.py OVERRIDES` would start. Raises: ConfigError."""
    return _composed(tuple(overrides))


@lru_cache(maxsize=4096)
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    groups = [text for text in overrides if (CONFIG_DIR / text.partition("=")[0]).is_dir()]
    method = next((text for text in groups if text.startswith("method=")), "method=none")
    try:
        config = deepcopy(_of_groups(tuple(text for text in groups if text != method)))
        config.method = _of_groups((METHOD_ALONE,), method).method
        for override in _parser().parse_overrides([text for text in overrides if text not in groups]):
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    return validate(config)


@lru_cache
def _of_groups(groups: tuple[str, ...], method: str = "method=none") -> DictConfig:
    """Not resolved: what refers to a value that a cell sets takes it."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose("config", overrides=[*groups, method])


@lru_cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
