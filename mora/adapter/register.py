"""Register MoRA with PEFT. Nothing else touches PEFT's registry."""

from __future__ import annotations

import aenum
from peft.utils import PeftType, register_peft_method


def register() -> None:
    """Add MORA to PEFT's enum and tables. May be called again.

    Raises:
        RuntimeError: Another package, such as an old fork with MoRA, has registered classes of its own under the name.
    """
    if "MORA" not in PeftType.__members__:
        aenum.extend_enum(PeftType, "MORA", "MORA")

    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from .config import MoraConfig
    from .model import MoraModel

    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType.MORA)
    if known is None:
        register_peft_method(name="mora", config_cls=MoraConfig, model_cls=MoraModel)
    elif known is not MoraConfig:
        raise RuntimeError(
            f"PEFT already knows a method MORA, {known.__module__}.{known.__qualname__}: uninstall one of the packages"
        )
