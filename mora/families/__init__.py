"""The kinds of adapters. Each is a file of this package, found without being listed; `base.Family` says what it holds."""

from __future__ import annotations

import importlib
import pkgutil
from typing import get_args

from .base import Family


def families() -> dict[str, type[Family]]:
    """Return the class of every kind of adapter by its name, the `kind` in a configuration."""
    for module in pkgutil.iter_modules(__path__):
        if not module.ispkg:
            importlib.import_module(f"{__name__}.{module.name}")
    by_kind = {get_args(family.model_fields["kind"].annotation)[0]: family for family in Family.__subclasses__()}
    return dict(sorted(by_kind.items()))
