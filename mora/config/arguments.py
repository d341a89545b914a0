"""Types of command line arguments, so that a wrong value is refused before anything is loaded."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from mora.errors import short
from mora.io import obstacle


def positive_int(text: str) -> int:
    """Return the text as an integer above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0 on, below 2^63")
    return int(text)


def amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, 0 or more")
    return value


def output_folder(text: str) -> Path:
    """Return the path of a folder to write, which is there or can be made. Nothing is made yet."""
    path = Path(text)
    try:
        there = obstacle(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{short(text)!r}: {error.strerror}; expected a folder") from error
    if not text or there:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a folder that can be written or made; {there or path} is none"
        )
    return path


def output_file(text: str) -> Path:
    """Return the path of a file to write, whose folder is there or can be made. Nothing is made yet."""
    output_folder(str(Path(text).parent))
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: is a folder; expected a file")
    return Path(text)


def device(text: str) -> str:
    """Return the text if it names an available torch device."""
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise argparse.ArgumentTypeError(f"{text!r}: expected a device that is here, such as cpu ({error})") from error
    return text
