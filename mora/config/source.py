"""Which code made a result: git's commit, and a fingerprint of the files that can change its numbers."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from mora.io import ROOT

CONFIG_DIR = ROOT / "configs"


class Files(NamedTuple):
    """The files that a fingerprint covers: `paths`, files and folders under the root, without files of some suffixes."""

    paths: tuple[str, ...]
    without: tuple[str, ...] = ()


# The files that can change the numbers of a run. Plans, benchmarks, renderers and documentation cannot: after a change of
# these a checkpoint is resumed, an evaluation goes on and a result stays usable. tests/unit/config/test_source.py checks the
# list by following imports.
NUMBERS = Files(
    (
        "mora/__init__.py",
        "mora/choices.py",
        "mora/digests.py",
        "mora/errors.py",
        "mora/imports.py",
        "mora/io.py",
        "mora/sizes.py",
        "mora/padding.py",
        "mora/ranks.py",
        "mora/frozen.py",
        "mora/families",
        "mora/adapter",
        "mora/methods",
        "mora/models",
        "mora/restarts",
        "mora/results.py",
        "mora/data",
        "mora/train",
        "mora/evaluate",
        "mora/config",
        "configs",
    ),
    without=(".md",),
)
# For benchmarks. Until 2026-11 it was also for runs, and their results are still brought in by it.
EVERYTHING = Files(("mora", "configs", "run.py"))


def describe(files: Files = NUMBERS) -> dict[str, Any]:
    """Return the commit, the fingerprint, and whether the files differ from those of the commit (`dirty`).

    In a tree without git, the commit is that of MORA_SOURCE_COMMIT, and `dirty` is None.
    """
    commit = _git("rev-parse", "HEAD")
    fingerprint = fingerprint_of_files(files)
    if commit is None:
        return {"commit": os.environ.get("MORA_SOURCE_COMMIT"), "fingerprint": fingerprint, "dirty": None}
    return {"commit": commit, "fingerprint": fingerprint, "dirty": fingerprint != fingerprint_of_commit(commit, files)}


@functools.cache
def of_this_process() -> dict[str, Any]:
    """Return `describe` as of the first call, which is what Python has loaded, even if the files change afterwards."""
    return describe()


def fingerprint_of_files(files: Files = NUMBERS) -> str:
    """Return 16 hex digits over the path and the git blob hash of each of these files in the work tree."""
    lines = []
    for name in files.paths:
        path = ROOT / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix not in files.without:
                data = file.read_bytes()
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                lines.append(f"{file.relative_to(ROOT).as_posix()} {blob}")
    return _digest(lines)


def fingerprint_of_commit(commit: str, files: Files = NUMBERS) -> str | None:
    """Return the same for the files of a commit; None if git does not know the commit."""
    listing = _git("ls-tree", "-r", "--full-tree", commit, "--", *files.paths)
    if listing is None:
        return None
    lines = []
    for line in listing.splitlines():
        meta, path = line.split("\t")
        if Path(path).suffix not in files.without:
            lines.append(f"{path} {meta.split()[2]}")
    return _digest(lines)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _git(*args: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
