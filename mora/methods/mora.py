"""MoRA (Eq. 2): our PEFT tuner."""

from __future__ import annotations

import warnings

from peft import PeftModel

from mora.adapter import MoraConfig
from mora.adapter.layer import MoraLayer
from mora.adapter.operators import Groups, Sharing
from mora.config.schema import MoraAdapter


def peft_config(
    adapter: MoraAdapter, r: int, target_modules: list[str] | str, rank_pattern: dict[str, int]
) -> MoraConfig:
    """`rank_pattern`: kind of module -> a rank of its own."""
    options = adapter.model_dump(exclude={"kind", "target_modules", "dropout"})
    return MoraConfig(
        r=r,
        target_modules=target_modules,
        rank_pattern=rank_pattern,
        mora_dropout=adapter.dropout,
        task_type="CAUSAL_LM",
        **options,
    )


def set_groups(model: PeftModel, groups: Groups) -> int:
    """Another group kind in every sharing layer, and in the config that is saved. Returns the number of layers.

    Warns where there is none: rotation and the others have no kinds of groups.
    """
    layers = [m for m in model.modules() if isinstance(m, MoraLayer)]
    changed = 0
    for name in model.active_adapters:
        sharing = [layer for layer in layers if isinstance(layer.operator.get(name), Sharing)]
        for layer in sharing:
            layer.set_groups(name, groups)
        if sharing:
            model.peft_config[name].groups = groups
        changed += len(sharing)
    if not changed:
        warnings.warn(f"groups={groups!r} changes nothing: no layer has operator sharing", stacklevel=2)
    return changed
