"""The ways to damage a file: cut, with a flipped bit, empty, unreadable, a folder, another's file, with NaN inside."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

NOT_READABLE = "not readable"  # by a process that obeys permissions
A_FOLDER, ANOTHER = "a folder", "another's"


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    """Flip a bit of the middle byte, and one of a digit, which changes a number and breaks no syntax."""
    changed = bytearray(data)
    digits = [match.start() for match in re.finditer(rb"(?<=[:, ])\d", data)]
    for at in {len(data) // 2, *(digits[len(digits) // 2 :][:1])}:
        changed[at] ^= 1
    return bytes(changed)


def _nan(data: bytes) -> bytes | None:
    """Replace the first number by NaN. Return None if the file is no text or has no number."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    changed = re.sub(r"(?<=[:, ])-?\d+(\.\d+)?(e-?\d+)?(?=[,}\s])", "NaN", text, count=1)
    return None if changed == text else changed.encode()


BYTES: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": _half,
    "flipped": _flipped,
    "empty": lambda data: b"",
    "NaN inside": _nan,
}
HOWS = (*BYTES, NOT_READABLE, A_FOLDER, ANOTHER)


def damage(path: Path, how: str, another: Path | None) -> bool:
    """Damage a file; return False if it cannot be damaged in that way, or would not change. `another` replaces it."""
    if how == A_FOLDER:
        path.unlink()
        path.mkdir()
        return True
    if how == NOT_READABLE:
        path.chmod(0)
        return True
    before = path.read_bytes()
    data = BYTES[how](before) if how != ANOTHER else another.read_bytes() if another is not None else None
    if data is None or data == before:
        return False
    path.write_bytes(data)
    return True
