"""MoRA (arXiv:2405.12130): a PEFT method, and the suite that replicates its paper.

    from mora import MoraConfig
    from peft import get_peft_model

The method is registered with PEFT as soon as both packages are imported, in either order. Importing `mora` alone does not
import torch, so that the launcher stays quick.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"
__all__ = ["MoraConfig", "MoraLayer", "MoraModel", "RestartCallback", "restore_base"]

if TYPE_CHECKING:
    from mora.adapter import MoraConfig, MoraLayer, MoraModel
    from mora.adapter.merged_base import restore_base
    from mora.restarts.callback import RestartCallback

_HOME = {"RestartCallback": "mora.restarts.callback", "restore_base": "mora.adapter.merged_base"}  # else mora.adapter


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_HOME.get(name, "mora.adapter")), name)
    raise AttributeError(f"module 'mora' has no attribute {name!r}")


class _AfterPeft(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Waits for `import peft`, lets it run, then registers MoRA."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)  # so that the other finders find it
        try:
            spec = importlib.util.find_spec("peft")
        finally:
            sys.meta_path.insert(0, self)  # the spec may only have been looked up, without an import
        if spec is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        sys.meta_path.remove(self)
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module("mora.adapter")


if "peft" in sys.modules:
    importlib.import_module("mora.adapter")
else:
    sys.meta_path.insert(0, _AfterPeft())
