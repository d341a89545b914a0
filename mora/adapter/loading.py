"""Load an adapter onto its base, and find the weights of the two that do not fit together."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from torch import nn


def load_checked(base: nn.Module, folder: Path | str) -> tuple[PeftModel, list[str], list[str]]:
    """Return the PEFT model of `base` with an adapter of any kind, and the names of the weights that do not fit.

    PEFT loads the weights that fit and says nothing about the others. Its errors, for a folder that it cannot read or for
    weights of another shape, pass through.

    Returns:
        The model; the adapter's weights that are missing in the folder; those of the folder that have no place in it.
    """
    model = PeftModel.from_pretrained(base, str(folder))
    mapping = getattr(base, "_checkpoint_conversion_mapping", {})
    loaded = model.load_adapter(str(folder), "default", key_mapping=mapping)  # once more, for what it returns
    return model, [key for key in loaded.missing_keys if ".default" in key], list(loaded.unexpected_keys)
