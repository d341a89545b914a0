"""Checkpoints that are whole or absent: each is written under another name, hashed, then renamed.

The last two are kept, or only the last where the disk has no room for a third.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mora.errors import one_line
from mora.io import file_digest

from .failpoint import failpoint

KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `folder/step_000300`. An interrupted or failed write leaves the earlier checkpoints as they were."""
    final, partial = folder / f"step_{step:06d}", folder / f".partial-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with open(partial / "state.pt", "wb") as file, _without_crc32():
            torch.save({"step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        (partial / "sha256").write_text(file_digest(partial / "state.pt"))
        failpoint("before_rename", step)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        # If the disk is full, torch raises a RuntimeError when it closes its archive while the OSError is handled.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise OSError(
            reason.errno, f"checkpoint of step {step} not written, the last one is kept: {reason.strerror}"
        ) from error
    kept = KEPT if shutil.disk_usage(folder).free > (final / "state.pt").stat().st_size else 1
    for old in _steps(folder)[:-kept]:
        shutil.rmtree(old, ignore_errors=True)
    return final


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Context manager: `torch.save` computes no CRC-32, which would take most of its time. The sha256 protects the file."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Return the newest intact checkpoint, on the CPU; None if there is none. A damaged one is reported and skipped."""
    for path in reversed(_steps(folder)):
        try:
            return _load(path)
        except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            reason = one_line(str(error).split("\n")[0])
            print(
                f"checkpoint {path} is damaged ({reason:.200}): using the one before",
                file=sys.stderr,
                flush=True,
            )
    return None


def _load(path: Path) -> dict[str, Any]:
    """Load one checkpoint.

    Raises:
        OSError, ValueError, RuntimeError, UnpicklingError: It is missing or damaged, or holds something other than data.
    """
    file = path / "state.pt"
    if (path / "sha256").read_text() != file_digest(file):
        raise ValueError("its sha256 does not match")
    # The file is memory-mapped, so that the ranks of a machine share one copy.
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict) or state.get("step") != _step(path):
        raise ValueError(f"it is not of step {_step(path)}")
    return state


def latest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    steps = _steps(folder)
    return _step(steps[-1]) if steps else 0


def _steps(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))
