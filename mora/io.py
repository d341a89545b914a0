"""Files and folders for all parts of the suite: where they are, atomic writes, locks, and digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_USE = "is in use by another process of the same run"  # a worker's last line, by which the suite recognises the case


def cache_dir() -> Path:
    """Return MORA_CACHE_DIR, or ~/.cache/mora: the folder of what can be made again."""
    return Path(os.environ.get("MORA_CACHE_DIR", Path.home() / ".cache" / "mora")).absolute()


def data_dir() -> Path | None:
    """Return MORA_DATA_DIR, the folder of local data; None if it is not set."""
    chosen = os.environ.get("MORA_DATA_DIR")
    return Path(chosen).absolute() if chosen else None


def output_dir() -> Path:
    """Return MORA_OUTPUT_DIR, or outputs/ of the checkout: the folder in which runs work."""
    return Path(os.environ.get("MORA_OUTPUT_DIR", ROOT / "outputs")).absolute()


def obstacle(folder: Path) -> Path | None:
    """Return the path at or above `folder` that is no folder, or cannot be written; None if it can be written or made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return None if there.is_dir() and os.access(there, os.W_OK) else there


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all. Several processes, even on several machines, may do so at once."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager: yield a path beside `path`. The file or folder made there replaces `path` if nothing goes wrong.

    Otherwise nothing is left of it. A file is written to the disk before it gets its name. Raises IsADirectoryError if a
    file would have to replace a folder.
    """
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        yield partial
        if partial.is_file():
            with open(partial, "rb+") as file:  # Windows flushes only files that are open for writing
                os.fsync(file.fileno())
        os.replace(partial, path)
    except IsADirectoryError as error:
        raise IsADirectoryError(error.errno, "a folder is where a file belongs, move it away", str(path)) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Context manager: hold the folder's lock, if possible. By it, processes keep out of each other's way.

    The system frees the lock, however the process ends.

    Args:
        folder: The folder, which must exist.
        shared: Whether others may share the lock; none may then have it alone.
        wait: Whether to wait until the lock is free, so that True is yielded.

    Yields:
        Whether the lock is held.
    """
    import fcntl  # not on Windows, where the method is used without the suite

    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, kind)
            ours = True
        except BlockingIOError:
            ours = False
        if ours and not shared:
            lock.truncate(0)
            lock.write(f"{os.getpid()} on {socket.gethostname()}")
            lock.flush()
        yield ours


def holder(folder: Path) -> str:
    """Return, as `PID on HOST`, who was the last to take the folder's lock without sharing it."""
    try:
        return (folder / ".lock").read_text() or "unknown"
    except OSError:
        return "unknown"


def sha256(path: Path) -> str:
    """Return the digest of a file's bytes. As files may be large, it is cached by path, size and modification time."""
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    folder, begin = cache_dir() / "sha256", f"{json.dumps(key)} "
    known = folder / "known.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            lines = known.read_text(errors="replace").splitlines() if known.is_file() else []
            for digest, *check in (line.removeprefix(begin).split() for line in lines if line.startswith(begin)):
                if check == [_check(digest)]:
                    return digest
            with open(known, "a") as file:
                digest = file_digest(path)
                file.write(f"{begin}{digest} {_check(digest)}\n")
                return digest
    except (OSError, ValueError):  # then there is no cache
        return file_digest(path)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, which are read now. `sha256` caches it."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check(digest: str) -> str:
    """Return the checksum by which a damaged line of the cache is recognised."""
    return hashlib.sha256(digest.encode()).hexdigest()[:8]
