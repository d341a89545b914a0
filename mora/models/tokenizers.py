"""The tokenizer of a model."""

from __future__ import annotations

import string

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mora.config.model_schema import Model, TextEnds
from mora.errors import ModelError, one_line

from . import known
from .gguf import as_folder


def load_tokenizer(config: Model) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model, without its weights.

    Raises:
        ModelError: There is none; or it lacks a token that ends a text, or those of `text_ends`.
    """
    if config.source in ("init", "init_on_device"):
        if config.tokenizer is None:
            return character_tokenizer()
        if (other := known.named(config.tokenizer)) is not None:
            return load_tokenizer(other)
    where = as_folder(config) if config.source == "gguf" else (config.tokenizer or config.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision_of(config))
    except (OSError, ValueError, KeyError, TypeError) as error:  # it is missing or gated, or its class needs more files
        raise cannot_load(where, error, "tokenizer" if config.tokenizer else "path") from error
    if config.text_ends is not None:
        set_text_ends(tokenizer, config.text_ends)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {str(where)!r} has no EOS token, which ends a text: set eos_token in its "
            "tokenizer_config.json"
        )
    return tokenizer


def set_text_ends(tokenizer: PreTrainedTokenizerBase, ends: TextEnds) -> None:
    """Make these the tokenizer's BOS and EOS. Raises ModelError for a token that it does not have."""
    for field, token in (("bos", ends.bos), ("eos", ends.eos)):
        if token is not None and token not in tokenizer.get_vocab():
            raise ModelError(f"model.text_ends.{field}={token!r}: the tokenizer has no such token")
    tokenizer.bos_token, tokenizer.eos_token = ends.bos, ends.eos


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a text: those of the model's generation config, and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    return list(dict.fromkeys(i for i in ids if i is not None))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding token, or EOS if there is none. Labels mask the padding, so the choice changes no loss."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per printable character, after <pad>, <s> and </s>, which no text can contain."""
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


def revision_of(config: Model) -> str:
    return config.revision if config.source == "pretrained" and config.revision else "main"


def cannot_load(where: object, error: Exception, field: str = "path") -> ModelError:
    return ModelError(
        f"model.{field}={str(where)!r} cannot be loaded ({one_line(error):.300}): give a local folder, or a hub id whose "
        "licence is accepted there and log in; scale=lite has a model that comes as a PyPI package"
    )
