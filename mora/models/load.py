"""The weights of a model, from random numbers, a GGUF file, a hub id or a folder, with adapters merged into them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mora.config.model_schema import Model
from mora.data import manifest
from mora.errors import ConfigError, ModelError, MoraError, one_line

from . import known
from .adapted import merged, tokenizer_of, with_adapter
from .dtypes import DTYPES
from .gguf import as_folder
from .tokenizers import cannot_load, end_ids, load_tokenizer, revision_of

# Weights are missing or gated, a folder has no model's config, a file is truncated, or the package for quantised weights
# is missing.
LOAD_ERRORS = (OSError, ValueError, SafetensorError, ImportError)


# What building a shape raises if sizes do not fit, are of the wrong kind or below 1, or need more memory than there is.
NOT_BUILT = (StrictDataclassError, ValueError, TypeError, ArithmeticError, AttributeError, KeyError, RuntimeError)


def load_model(
    config: Model, precision: str, device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the base model in the dtype of `precision`, and its tokenizer.

    The model is on the CPU; with source=init_on_device it is on `device`.

    Raises:
        ConfigError: The checkpoint is no causal language model of text alone, or not of the shape of the known model.
        ModelError: Weights are missing, gated or not the pinned ones; the message says what to do.
    """
    dtype = DTYPES[precision]
    tokenizer = load_tokenizer(config)
    if config.source == "init":
        return _cast(_random_model(config, tokenizer, torch.device("cpu"), torch.float32), dtype), tokenizer
    if config.source == "init_on_device":
        return _random_model(config, tokenizer, device or torch.device("cpu"), dtype), tokenizer
    where = as_folder(config) if config.source == "gguf" else config.path
    assert where is not None
    try:
        hf_config = AutoConfig.from_pretrained(where, revision=revision_of(config))
        _check_kind(str(where), hf_config)
        _check_shape(config, hf_config)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, revision=revision_of(config))
    except MoraError:
        raise
    except (*LOAD_ERRORS, KeyError, RuntimeError) as error:
        raise cannot_load(where, error) from error
    _stop_at_eos(model, tokenizer)
    return model, tokenizer


def _stop_at_eos(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the model's own generation also stop at the tokenizer's EOS, with which training ends texts."""
    ends = end_ids(model, tokenizer)
    if model.generation_config is not None and len(ends) > 1:
        model.generation_config.eos_token_id = ends


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """Cast the parameters but not the buffers, since the rotary embedding's frequencies must stay in fp32."""
    for p in model.parameters():
        if p.is_floating_point():  # not the packed weights of a quantised layer
            p.data = p.data.to(dtype)
    return model


def load_any(name: str, precision: str, merge: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model of `load_weights` and the tokenizer beside it. If an adapter has none, it is that of its base.

    Raises:
        ModelError: The model or its tokenizer cannot be loaded, or there is no adapter to leave unmerged.
    """
    with _errors_of(name):
        base = _base_of(name)
        if base is None and not merge:
            raise ModelError(f"{name!r} is not an adapter's folder, so nothing in it can stay unmerged")
        model, tokenizer = load_weights(name, precision, merge=merge), _tokenizer(name)
        if base:
            tokenizer = tokenizer_of(name, tokenizer, model)
        _stop_at_eos(model, tokenizer)
        return model, tokenizer


def load_weights(name: str, precision: str, revision: str | None = None, merge: bool = True) -> PreTrainedModel:
    """Load a model of configs/model by name, an adapter's folder with its base, or a checkpoint's folder or hub id.

    `revision` is that of a hub id; None means its main branch. For an adapter's base it is the one in adapter_config.json.
    With merge=False an adapter is not merged into its base, and the model is a PeftModel.

    Raises:
        ModelError: It cannot be loaded.
    """
    if (model := known.named(name)) is not None:
        return load_model(model, precision)[0]
    if wrong := manifest.damage(Path(name)):
        raise ConfigError(
            f"{wrong}: train again, or bring back a copy; an edited one loads without its {manifest.NAME}"
        )
    dtype = DTYPES[precision]
    with _errors_of(name):
        if (base := _base_of(name)) is None:
            return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, revision=revision or "main")
        if merge:  # in fp32, then cast once
            return _cast(merged_with(load_weights(base[0], "fp32", base[1]), name), dtype)
        return _cast(with_adapter(load_weights(base[0], precision, base[1]), name), dtype)


def merged_with(base: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Merge the adapter in that folder into `base`, in fp32, and return `base`. Raises what `merged` raises."""
    return merged(base.float(), adapter)


def _tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    if (model := known.named(name)) is not None:
        return load_tokenizer(model)
    if (base := _base_of(name)) is not None:
        return _tokenizer(*base)
    return AutoTokenizer.from_pretrained(name, revision=revision or "main")


def _base_of(name: str) -> tuple[str, str | None] | None:
    """Return the base that an adapter's folder names, and its revision; None if it is no adapter's. Raises ModelError."""
    path = Path(name) / "adapter_config.json"
    if not path.is_file():
        return None
    settings: dict[str, Any] = json.loads(path.read_text())
    if base := settings["base_model_name_or_path"]:
        return base, settings.get("revision")
    folder = Path(name).resolve().parent / "model"
    advice = f"give {folder}, the merged model" if folder.is_dir() else "write the base model's folder or id there"
    raise ModelError(f"{path}: base_model_name_or_path is empty: {advice}")


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Context manager: turn errors in loading that model into a ModelError of one line."""
    try:
        yield
    except MoraError:  # about the adapter's base; it says enough
        raise
    except (*LOAD_ERRORS, KeyError, RuntimeError, AttributeError) as error:  # the last two: an adapter of another base
        parts = [str(part) for part in (Path(name) / "adapter", Path(name) / "model") if part.is_dir()]
        if parts:
            raise ModelError(f"model {name!r} is the folder of a run: give {' or '.join(parts)}") from error
        if Path(name).is_absolute() and not Path(name).exists():
            raise ModelError(f"model {name!r}: there is no such folder; give a folder, hub id or name") from error
        reason = f"{one_line(error):.300}"
        advice = f"give a folder, hub id or name{known.meant(name)}"
        raise ModelError(f"model {name!r} cannot be loaded ({reason}): {advice}") from error


def _check_kind(where: str, hf_config: PretrainedConfig) -> None:
    """Raise ConfigError if the model does not simply continue a text."""
    kind = hf_config.model_type
    if hf_config.is_encoder_decoder:
        raise ConfigError(f"model.path={where!r} is an encoder-decoder ({kind}): expected a causal language model")
    if hasattr(hf_config, "vision_config") or hasattr(hf_config, "audio_config"):
        raise ConfigError(
            f"model.path={where!r} is no language model alone ({kind}): expected one that reads only text"
        )


def _check_shape(config: Model, hf_config: PretrainedConfig) -> None:
    """Raise ConfigError if the checkpoint's shape is not that of the known model named `config.name`."""
    pinned = known.named(config.name)
    for field, expected in ((pinned and pinned.shape) or {}).items():
        value = getattr(hf_config, field, expected)  # not every kind of model has every field
        if value != expected:
            raise ConfigError(
                f"model.path={config.path!r} is not {config.name}: its {field} is {value}, expected {expected}; take "
                "model=custom with this model.path, so that its results are not taken for those of this one"
            )


def _random_model(
    config: Model, tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: torch.dtype
) -> LlamaForCausalLM:
    """Return a Llama with random weights, drawn on `device` in `dtype`. They do not depend on earlier draws."""
    fields = config.architecture or {}
    if unknown := sorted(fields.keys() - vars(LlamaConfig()).keys()):
        raise ConfigError(f"model.architecture.{unknown[0]}: LlamaConfig has no such field")
    vocabulary = fields.get("vocab_size", LlamaConfig().vocab_size)
    if isinstance(vocabulary, int) and len(tokenizer) > vocabulary:
        raise ConfigError(
            f"model.tokenizer={config.tokenizer!r} has {len(tokenizer)} tokens, more than "
            f"model.architecture.vocab_size={vocabulary}: take another, or raise it"
        )
    heads, groups = (fields.get(f"num_{kind}_heads") for kind in ("attention", "key_value"))
    if isinstance(heads, int) and isinstance(groups, int) and (groups < 1 or heads % groups):
        raise ConfigError(
            f"model.architecture.num_attention_heads={heads}: expected a multiple of num_key_value_heads={groups}, which "
            "queries share; change either"
        )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
            torch.manual_seed(config.init_seed or 0)
            return LlamaForCausalLM(LlamaConfig(**fields, **special))
    except NOT_BUILT as error:
        shown = ", ".join(f"{name}={value}" for name, value in fields.items())
        raise ConfigError(f"model.architecture cannot be built ({one_line(error):.300}): it is {shown:.500}") from error
    finally:
        torch.set_default_dtype(before)
