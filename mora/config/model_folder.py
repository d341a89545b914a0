"""A model given by a path: whether it is one, and its identity. Imports no torch; weights are only sampled."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from mora.errors import short

from .model_schema import Model
from .source import ROOT
from .yaml_file import read_yaml

KNOWN = ROOT / "configs" / "model"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
SAMPLES, SAMPLE_BYTES = 64, 4096  # the samples of a weights file in its fingerprint


def identified(model: Model) -> Model:
    """Return the model in a form that other processes can read, with what tells its weights from others.

    A folder becomes an absolute path, since a worker has another working directory. If the model's name is not in
    configs/model, its fingerprint is added. `model=llama2_7b model.name=mine model.path=...` brings LLaMA-2's shape and
    revision along, which are not those of the folder.

    Raises:
        ValueError: The folder has no causal language model with its tokenizer, or another one than before; or another model
            has the name.
    """
    folder = Path(model.path or "")
    try:
        there = folder.exists()
    except OSError as error:  # no file can have this name
        raise ValueError(f"model.path={short(str(folder))!r}: {error.strerror}; give a folder or hub id") from error
    if model.path is not None and there and not folder.is_absolute():
        folder = folder.absolute()
        model = model.model_copy(update={"path": str(folder)})
    if _revisions().get(model.revision, model.name) != model.name:
        model = model.model_copy(update={"revision": None})
    known = _known(model.name)
    if known and (model.source != known["source"] or (known["revision"] and not model.revision)):
        raise ValueError(
            f"model.name={model.name!r} is that of configs/model/{model.name}.yaml, which this model is not: give it another"
        )
    if known or model.source != "pretrained":
        return model
    if not folder.is_dir():
        if folder.is_file():
            raise ValueError(
                f"model.path={model.path!r} is a file: expected a folder or hub id; a GGUF file also needs "
                "model.source=gguf model.sha256=DIGEST, as sha256sum prints it"
            )
        if folder.is_absolute():
            raise ValueError(f"model.path={model.path!r}: there is no such folder; give a folder or hub id")
        return model.model_copy(update={"shape": None})
    check_folder(folder)
    sha256 = fingerprint(folder)
    if model.sha256 not in (None, sha256):
        raise ValueError(
            f"model.path={model.path!r}: its fingerprint is {sha256}, expected model.sha256={model.sha256}: "
            "the weights are not those that the run began with; give another model.name, or the old weights"
        )
    return model.model_copy(update={"sha256": sha256, "shape": None})


@cache
def _known(name: str) -> dict[str, Any] | None:
    """Return what the file in configs/model says about the model of that name."""
    file = KNOWN / f"{name}.yaml"
    values = read_yaml(file) if file.is_file() else {}
    return values if values.get("name") == name else None


@cache
def _revisions() -> dict[str | None, str]:
    """Return, by hub revision, the name of the model in configs/ that it pins."""
    models = [read_yaml(path) for path in sorted(KNOWN.glob("*.yaml"))]
    return {m["revision"]: m["name"] for m in models if m.get("source") == "pretrained" and m.get("revision")}


def check_folder(folder: Path) -> None:
    """Raise ValueError if something is missing or wrong; the error says what."""
    where = f"model.path={str(folder)!r}"
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{where} has no config.json: expected a checkpoint's folder of transformers") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}/config.json cannot be read ({error})") from error
    kind = config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise ValueError(f"{where} is an encoder-decoder ({kind}): expected a causal language model")
    if "vision_config" in config or "audio_config" in config or _is_image_model(config):
        raise ValueError(f"{where} is no language model alone ({kind}): expected a causal one that reads only text")
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise ValueError(f"{where} has no weights: expected {' or '.join(WEIGHTS)}")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(
            f"{where} has no tokenizer: expected one of {', '.join(TOKENIZERS)}; save it there, "
            "tokenizer.save_pretrained(folder)"
        )


def _is_image_model(config: dict[str, Any]) -> bool:
    """Return whether a configuration is that of a model that reads images and no text."""
    return "vocab_size" not in config and ("image_size" in config or "num_channels" in config)


def fingerprint(folder: Path) -> str:
    """Return 64 hex digits over config.json and samples of every weights file.

    Two sets of trained weights never share all of these samples.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for i in range(SAMPLES):
                file.seek(size * i // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
