"""The type of a command line argument that names a model. Imports no torch."""

from __future__ import annotations

import argparse

from mora.errors import short

from .known import named, refused


def model(text: str) -> str:
    """Parse a model argument: an existing folder, a name in configs/model, or a possible hub id."""
    try:
        reason = refused(text) if named(text) is None else None
    except OSError as error:  # a name that is too long for a path
        reason = f"{short(text)!r}: {error.strerror}; expected a folder, hub id or name in configs/model"
    if reason:
        raise argparse.ArgumentTypeError(reason)
    return text
