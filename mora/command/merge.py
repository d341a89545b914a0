"""Merge a run's adapter into its base: a checkpoint that needs neither PEFT nor mora."""

from __future__ import annotations

import argparse
from pathlib import Path

from mora.config.arguments import output_folder
from mora.errors import ConfigError, ends_in_one_line
from mora.io import replacing

from . import trained


def parse(arguments: list[str] | None = None, prog: str = "mora merge") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("run", help="a run's id, its folder, or the folder of any PEFT adapter that can be merged")
    parser.add_argument(
        "output", nargs="?", type=output_folder, help="folder to write; default: merged/ beside the adapter"
    )
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: the run's")
    return parser.parse_args(arguments)


@ends_in_one_line("mora merge")
def main(arguments: list[str] | None = None) -> int:
    print(merge(parse(arguments)))
    return 0


def merge(options: argparse.Namespace) -> Path:
    """Merge in fp32, round once, write weights and tokenizer, and return their folder, complete or absent.

    Raises:
        ConfigError: There is no adapter, its base cannot be loaded, or the output exists.
    """
    folder = trained.find(options.run)
    if folder is None:
        raise trained.unknown(options.run)
    if not trained.is_adapter(folder):
        raise ConfigError(f"{folder} is a whole model already: the run changed more than an adapter")
    output: Path = options.output or folder.parent / "merged"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists already: remove it, or give another folder")
    from mora.models.load import load_any
    from mora.train.run_messages import quiet

    quiet()
    model, tokenizer = load_any(str(folder), options.precision or trained.precision(folder))
    with replacing(output) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return output
