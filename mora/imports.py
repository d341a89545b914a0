"""Import large packages without garbage collections over objects that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Context manager: exempt what is imported, or made and kept, from garbage collection, now and later.

    Otherwise torch, transformers and PEFT take a third longer to import, since every collection looks at all objects.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
