"""The type of a command line argument that names a model. Imports no torch."""

from __future__ import annotations

import argparse

from .known import named, refused


def model(text: str) -> str:
    """Parse a model argument: an existing folder, a name in configs/model, or a possible hub id."""
    if named(text) is None and (reason := refused(text)):
        raise argparse.ArgumentTypeError(reason)
    return text
