"""python -m mora.models NAME: fetches a model of configs/model, checks it, and says what it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mora.config.model_schema import Model
from mora.errors import ConfigError, ends_in_one_line, short

from . import known
from .shapes import UnknownShape, shape_of


@ends_in_one_line("mora.models", ValueError, stopped="stopped; incomplete files were removed")
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mora.models", description=__doc__)
    parser.add_argument("name", help=f"one of {', '.join(known.names())}")
    options = parser.parse_args(arguments)
    model = known.named(options.name)
    if model is None:
        raise ConfigError(
            f"{options.name!r}: expected the name of a model in configs/model: {', '.join(known.names())}"
        )
    print(f"{model.name}: {_fetched(model)}; {_size(model)}")
    return 0


def _size(model: Model) -> str:
    try:
        return f"{shape_of(model).parameters:,} parameters"
    except UnknownShape:  # only a run knows it, from the weights
        return "plans of its runs need the field shape"


def _fetched(model: Model) -> str:
    """Return the path of the model's checkpoint, which is fetched if needed. Raises ConfigError and the hub's errors."""
    if model.source == "gguf":
        from . import files, gguf

        files.fetch(model)
        return str(gguf.as_folder(model))
    if model.source == "pretrained":
        return _checkpoint(str(model.path), model.revision)
    return "its weights are random, so there is nothing to fetch"


def _checkpoint(path: str, revision: str | None) -> str:
    """Return a folder as it is, and of a hub id the folder that it is fetched to. Raises ConfigError."""
    if Path(path).is_dir():
        if not Path(path, "config.json").is_file():
            raise ConfigError(f"path={path!r} has no config.json: expected the folder of a checkpoint, or a hub id")
        return path
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, revision=revision, ignore_patterns=["*.bin", "*.pth", "*.gguf"])
    except (ValueError, OSError) as error:  # OSError: of the hub and of the network
        raise ConfigError(
            f"path={path!r}, revision={revision!r} cannot be fetched ({short(str(error), 200)}): expected a folder "
            "that exists, or a hub id and a commit of it; a gated model needs HF_TOKEN"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
