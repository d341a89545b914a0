"""Large packages, imported without a look for garbage among what stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Make what is imported, or made once and kept, exempt from searches for garbage, meanwhile and afterwards.

    Otherwise torch, transformers and PEFT take a third longer to import, since every search looks at all that is there.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
