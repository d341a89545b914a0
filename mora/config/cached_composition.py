"""Compose many runs quickly: Hydra composes each choice of groups once, and the result is cached.

The overrides of a cell give the same as with `mora.config.compose`; a test compares the two. Composed configurations are
kept in the cache under a hash of `configs/` and of the code that reads it, so that the next process need not ask Hydra.
"""

from __future__ import annotations

import atexit
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache, reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mora.errors import ConfigError
from mora.io import cache_dir, replace_file

from .hydra_compose import compose_unresolved, hydra_line, parse_override, validate
from .schema import RunConfig
from .source import CONFIG_DIR

OF_A_FILE = ("model.", "method.config=")  # begin overrides that stand for a folder's digest or a file's content
MOST_KEPT, FILES_KEPT = 4096, 8  # a configuration takes some 2 kB
METHOD_ALONE = "task=uuid"  # any task would do: a method's file sets the section `method` and nothing else


class Base(NamedTuple):
    """A composition of groups, not resolved yet, so that references follow what a cell sets. `plain` has its own values."""

    config: DictConfig
    plain: dict[str, Any]


def compose_cached(overrides: Sequence[str]) -> RunConfig:
    """Return the run that `python run.py OVERRIDES` would start. Only one thread at a time may call this.

    Raises:
        ConfigError: The overrides make no run.
    """
    return _composed(tuple(overrides))


@lru_cache(maxsize=4096)
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    kept, key = _kept(), json.dumps(overrides)
    if key in kept:
        return RunConfig.model_validate(kept[key])
    config = _compose(overrides)
    if not any(text.lstrip("+").startswith(OF_A_FILE) for text in overrides):
        kept[key] = config.model_dump(mode="json")
    return config


@cache
def _kept() -> dict[str, Any]:
    """Return overrides -> configuration, for all that this source has composed so far.

    If the process ends with more of them than at its beginning, they are written again.
    """
    digest = hashlib.sha256(version("hydra-core").encode())
    for file in sorted([*CONFIG_DIR.rglob("*.yaml"), *Path(__file__).parent.glob("*.py")]):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    path = cache_dir() / "compositions" / f"{digest.hexdigest()[:16]}.json"
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):  # there is none yet, or it is damaged
        kept = {}
    atexit.register(_write, path, kept, len(kept))
    return kept


def _write(path: Path, kept: dict[str, Any], before: int) -> None:
    """Write the newest MOST_KEPT configurations, and remove all but the newest FILES_KEPT files of the folder."""
    if len(kept) > before:
        with suppress(OSError):  # a cache need not be writable
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(dict(list(kept.items())[-MOST_KEPT:])))
            for old in sorted(path.parent.glob("*.json"), key=_changed)[:-FILES_KEPT]:
                old.unlink(missing_ok=True)


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _compose(overrides: tuple[str, ...]) -> RunConfig:
    from hydra.errors import HydraException

    groups = [text for text in overrides if (CONFIG_DIR / text.partition("=")[0]).is_dir()]
    methods = [text for text in groups if text.startswith("method=")]
    changed: list[str] = []
    try:
        base = _base(tuple(text for text in groups if text not in methods), methods[-1] if methods else "method=none")
        try:
            for override in (_parsed(text) for text in overrides if text not in groups):
                OmegaConf.update(base.config, override.key_or_group, override.value(), merge=False)
                changed.append(override.key_or_group)
            return validate(base.config)
        finally:
            for key in changed:
                OmegaConf.update(base.config, key, reduce(_child, key.split("."), base.plain), merge=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_line(error)) from error


def _child(node: Any, name: str) -> Any:
    return node[int(name)] if isinstance(node, list) else node[name]


@cache
def _base(groups: tuple[str, ...], method: str) -> Base:
    values: Any = OmegaConf.to_container(_of_groups(groups))
    plain = values | {"method": OmegaConf.to_container(_of_groups((METHOD_ALONE,), method).method)}
    config = OmegaConf.create(plain)
    OmegaConf.set_struct(config, True)
    return Base(config, plain)


@cache
def _of_groups(groups: tuple[str, ...], method: str = "method=none") -> DictConfig:
    return compose_unresolved([*groups, method])


_parsed = lru_cache(maxsize=1024)(parse_override)
