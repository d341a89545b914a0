"""Put an adapter from a folder onto its base: either every weight is in its place, or there is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mora.adapter.loading import load_checked
from mora.errors import ModelError


def with_adapter(base: nn.Module, folder: Path | str) -> Any:
    """Return the PEFT model of `base` with the adapter in `folder`.

    Raises:
        ModelError: A weight of the adapter has no module, or a module has no weight, so that the scores would be those of
            the base, or of a part of the adapter. PEFT's own errors for a folder that it cannot read pass through.
    """
    model, missing, unexpected = load_checked(base, folder)
    for keys, what in ((unexpected, "names no module of its base"), (missing, "is missing in it")):
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise ModelError(
                f"adapter {str(folder)!r} does not fit its base: {keys[0]} {what}{more}; give the base it was trained "
                "on, in adapter_config.json as base_model_name_or_path"
            )
    return model


def merged(base: nn.Module, folder: Path | str) -> Any:
    """Return `base` with the adapter in `folder` merged into it.

    Raises ModelError as `with_adapter` does, and for a kind of adapter that cannot be merged.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(folder)
    if config.is_prompt_learning or config.is_adaption_prompt:
        kind = config.peft_type.value  # type: ignore[union-attr]
        raise ModelError(
            f"adapter {str(folder)!r} is of kind {kind}, which cannot be merged into weights: expected one that can, "
            "such as LoRA or MoRA"
        )
    return with_adapter(base, folder).merge_and_unload()


def tokenizer_of(folder: Path | str, base: PreTrainedTokenizerBase, model: nn.Module) -> PreTrainedTokenizerBase:
    """Return the tokenizer beside an adapter, with which it was trained, else that of its base.

    Raises:
        ModelError: It has more tokens than the model has embeddings.
    """
    if not (Path(folder) / "tokenizer_config.json").is_file():
        return base
    tokenizer = AutoTokenizer.from_pretrained(folder)
    embeddings: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    if len(tokenizer) > len(embeddings):
        raise ModelError(
            f"the tokenizer in {str(folder)!r} has {len(tokenizer)} tokens, its base {len(embeddings)} embeddings: "
            "expected the base that the adapter was trained on, or the tokenizer without what was added"
        )
    return tokenizer
