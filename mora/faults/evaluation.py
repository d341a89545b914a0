"""What an evaluation needs, made up: a tiny model as a folder, and records; as a command, which a forked process runs."""

from __future__ import annotations

from pathlib import Path

import torch

from mora.evaluate import synthetic
from mora.models.load import load_any


def main(arguments: list[str]) -> int:
    """`FOLDER SEED`: writes FOLDER/model, of other weights with another seed, and FOLDER/data."""
    folder = Path(arguments[0])
    model, tokenizer = load_any("tiny", "fp32")
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * float(arguments[1])
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    synthetic.write(folder / "data")
    return 0
