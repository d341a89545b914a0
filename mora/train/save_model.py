"""What a run leaves in its folder: the adapter, the whole model if more than the adapter has changed, and a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mora.config.run_id import run_id
from mora.config.schema import Model, RunConfig
from mora.data import manifest
from mora.io import replace_file
from mora.models import known

from .distributed import rank

WEIGHTS = ("*.safetensors",)  # the saved files that the manifest covers; the others may be edited


def save_model(model: Any, tokenizer: Any, config: RunConfig, folder: Path) -> None:
    """Save the adapter; if more than the adapter has changed, save the whole merged model, too, as transformers loads it.

    The tokenizer is saved beside each.
    """
    adapted = config.method.adapter is not None
    base_changed = not adapted or config.method.restart is not None or config.trains_rest
    if adapted and rank() == 0:
        model.save_pretrained(str(folder / "adapter"))
        tokenizer.save_pretrained(str(folder / "adapter"))
        _describe_adapter(folder / "adapter", None if base_changed else base_name(config.model), config)
        manifest.write(folder / "adapter", WEIGHTS)
    if base_changed:
        merged_model = model.merge_and_unload() if adapted else model
        if rank() == 0:
            merged_model.save_pretrained(str(folder / "model"))
            tokenizer.save_pretrained(str(folder / "model"))
            manifest.write(folder / "model", WEIGHTS)


def base_name(model: Model) -> str | None:
    """Return a name of the base model that is valid on other machines: its hub id, or its name in configs/model.

    None if the model has neither since its settings were overridden.
    """
    if model.source == "pretrained":
        return model.path
    return model.name if model.model_copy(update={"path": None}) == known.named(model.name) else None


def _describe_adapter(adapter: Path, base: str | None, config: RunConfig) -> None:
    """Replace what PEFT writes as the base, a path in this machine's cache, and its model card, which has only blanks."""
    path = adapter / "adapter_config.json"
    revision = config.model.revision if base and config.model.source == "pretrained" else None
    values = json.loads(path.read_text()) | {"base_model_name_or_path": base, "revision": revision}
    replace_file(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
    lines = [
        f"Adapter of the run {run_id(config)}, trained on {config.model.name}.",
        "Its weights alone mean nothing: the rest of the model was trained or overridden; a merged one is in ../model."
        if base is None
        else f"Its base is {base}, of configs/model or the hub. `mora merge FOLDER` writes a model that needs no PEFT, "
        "`mora generate FOLDER PROMPT` answers, `mora evaluate FOLDER --task TASK` scores.",
        "In your own code `import mora` before PEFT loads it, else PEFT, which has no MoRA, says KeyError: 'MORA'. "
        "A base that is no hub id is loaded by `mora.models.load.load_any(FOLDER, 'fp32')`: merged model and tokenizer.",
    ]
    replace_file(adapter / "README.md", "\n".join(lines) + "\n")
