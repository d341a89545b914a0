"""Everything that runs need on a machine without network, in pieces of a given size: wheels, weights and data.

python scripts/make_bundle.py OUT --models smollm2_135m qwen25_coder_0b5 --data DATA/pretrain_text DATA/gsm8k
python scripts/make_bundle.py OUT --models smollm2_135m --has has.txt --python 3.12 --piece-mib 48

OUT gets `bundle.000` and so on, `pieces.json` with their digests, and `unpack_bundle.py`, which the other machine runs. What
is carried there piece by piece is checked there piece by piece.

--has names a file that `python -m pip list --format=freeze` wrote on the other machine: what is there, in whatever version,
is left out. Without it all wheels are taken, PyTorch's among them. Versions are those of requirements.lock; what is needed
are the extras of pyproject.toml that --extras names, with all that they need in turn, as installed here. A package without
a wheel for that Python is built here, if it is pure Python. Models are fetched and checked as `make model` does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import IO

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mora.config import ConfigError
from mora.config.arguments import output_folder, positive_int
from mora.config.source import ROOT
from mora.errors import ends_in_one_line, short
from mora.io import cache_dir, file_digest
from mora.models import files, known

GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
PLATFORMS = (*(f"manylinux_{glibc}_x86_64" for glibc in GLIBC), "manylinux2014_x86_64", "manylinux1_x86_64")


@ends_in_one_line("make_bundle.py", ValueError)
def main() -> int:
    options = _options()
    _check(options)  # before gigabytes of wheels are fetched
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary)
        _wheels(tree / "wheels", options)
        _models(tree / "cache", options.models)
        _data(tree / "data", options.data)
        _manifest(tree)
        pieces = _cut(tree, options.out, options.piece_mib * 2**20)
    shutil.copy(ROOT / "scripts" / "unpack_bundle.py", options.out)
    total = sum(size for _, size in pieces.values())
    print(f"{len(pieces)} pieces, {total / 2**20:,.1f} MiB, in {options.out}; there: python3 unpack_bundle.py . TARGET")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise ConfigError or ValueError if a model or folder is not there, before anything is fetched."""
    for name in options.models:
        model = known.named(name)
        if model is None or model.source != "gguf":
            gguf = [name for name in known.names() if (it := known.named(name)) and it.source == "gguf"]
            raise ConfigError(
                f"--models {name}: expected one whose weights are a GGUF file; there are {', '.join(gguf)}"
            )
    for path in options.data:
        if not path.is_dir():
            raise ValueError(f"--data {path}: there is no such folder")
    if options.has and not options.has.is_file():
        raise ValueError(
            f"--has {options.has}: there is no such file; make it with `python -m pip list --format=freeze`"
        )


def needed(extras: list[str], python: str) -> set[str]:
    """Return the canonical names of the packages that these extras need on that Python, directly or indirectly.

    What a package needs is what the one that is installed here says.

    Raises:
        ValueError: There is no such extra, or a package is not installed.
    """
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if unknown := [extra for extra in extras if extra not in optional]:
        raise ValueError(f"--extras {unknown[0]}: expected some of {', '.join(optional)}")
    there = {"python_version": python, "python_full_version": f"{python}.0"}
    seen: set[tuple[str, str]] = set()  # with its extra, since a package may be needed both with one and without it
    open_ = [Requirement(text) for extra in extras for text in optional[extra]]
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        for extra in {(name, extra) for extra in (requirement.extras or {""})} - seen:
            seen.add(extra)
            environment = there | {"extra": extra[1]}
            open_ += [r for r in _requirements(name) if r.marker is None or r.marker.evaluate(environment)]
    return {name for name, _ in seen}


def _requirements(name: str) -> list[Requirement]:
    try:
        return [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:
        raise ValueError(f"{name} is not installed here: make install") from None


def _wheels(folder: Path, options: argparse.Namespace) -> None:
    """Collect the wheels, and the version of the Python that they are for.

    Raises:
        ValueError: A package has no wheel for that Python, and cannot be built as pure Python.
    """
    folder.mkdir(parents=True)
    (folder / "python.txt").write_text(options.python)
    listed = options.has.read_text().splitlines() if options.has else []
    there = {str(canonicalize_name(line.split("==")[0])) for line in listed}
    lock = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    pinned = {str(canonicalize_name(name)): version for name, version in lock}
    names = sorted(needed(options.extras, options.python) - there)
    wanted = [*(f"{name}=={pinned.get(name) or version(name)}" for name in names), *options.also]
    with ThreadPoolExecutor(8) as pool:
        for requirement, _ in zip(wanted, pool.map(lambda r: _fetch(folder, r, options.python), wanted), strict=True):
            print(requirement, flush=True)


def _fetch(folder: Path, requirement: str, python: str) -> None:
    pip = [sys.executable, "-m", "pip"]
    there = [part for name in PLATFORMS for part in ("--platform", name)]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *there]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    download = [*pip, "download", *quiet, *target, "-d", str(folder), requirement]
    if subprocess.run(download, capture_output=True).returncode == 0:
        return
    built = folder / f"built-{requirement}"
    done = subprocess.run([*pip, "wheel", *quiet, "-w", str(built), requirement], capture_output=True, text=True)
    if done.returncode or not list(built.glob("*-none-any.whl")):
        raise ValueError(
            f"{requirement}: there is no wheel for Python {python}, and none of pure Python could be built; "
            f"pip says: {short(done.stderr, 300) or 'nothing'}"
        )
    # It was built by this Python, so pip takes it from there by the rules of the other machine's.
    local = ["--no-index", "--find-links", str(built)]
    done = subprocess.run([*download[:-1], *local, requirement], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{requirement} is not for Python {python}; pip says: {short(done.stderr, 300)}")
    shutil.rmtree(built)


def _models(cache: Path, names: list[str]) -> None:
    """Collect the models' files.

    Raises:
        ConfigError: A file cannot be obtained or has another digest.
    """
    for name in names:
        model = known.named(name)
        assert model is not None, "checked before"
        print(name, flush=True)
        target = cache / files.cached(model).relative_to(cache_dir())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files.fetch(model), target)


def _data(folder: Path, paths: list[Path]) -> None:
    for path in paths:
        shutil.copytree(path, folder / path.resolve().name)


def _manifest(tree: Path) -> None:
    facts = {
        str(path.relative_to(tree)): {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in sorted(tree.rglob("*"))
        if path.is_file()
    }
    (tree / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n")


def _cut(tree: Path, out: Path, piece_bytes: int) -> dict[str, tuple[str, int]]:
    """Write the tree as one tar, cut into pieces. What an earlier bundle left in `out` is removed first."""
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("bundle.[0-9]*"), out / "pieces.json"]:
        old.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path in sorted(tree.iterdir()):
                tar.add(path, path.name, filter=_plain)
        packed.seek(0)
        pieces = {}
        for number, data in enumerate(_pieces(packed, piece_bytes)):
            name = f"bundle.{number:03d}"
            (out / name).write_bytes(data)
            pieces[name] = (hashlib.sha256(data).hexdigest(), len(data))
    (out / "pieces.json").write_text(
        json.dumps({name: digest for name, (digest, _) in pieces.items()}, indent=1) + "\n"
    )
    return pieces


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return the entry with fixed metadata, so that the bytes do not depend on who makes it or when."""
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


def _pieces(packed: IO[bytes], size: int) -> Iterator[bytes]:
    while data := packed.read(size):
        yield data


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=output_folder, help="folder of the pieces")
    parser.add_argument("--models", nargs="*", default=[], help="names of configs/model whose weights are GGUF files")
    parser.add_argument("--data", nargs="*", type=Path, default=[], help="folders, as they lie under MORA_DATA_DIR")
    parser.add_argument(
        "--extras", nargs="*", default=["suite", "deepspeed"], help="of pyproject.toml; none: no wheels"
    )
    parser.add_argument(
        "--also", nargs="*", default=[], metavar="NAME==VERSION", help="more packages: liger-kernel==0.8.5"
    )
    parser.add_argument("--has", type=Path, help="`pip list --format=freeze` of the other machine")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", type=_python, default=here, help="of the other machine")
    parser.add_argument("--piece-mib", type=positive_int, default=1024, help="the largest piece")
    return parser.parse_args()


def _python(text: str) -> str:
    if not re.fullmatch(r"3\.(1[1-9]|[2-9]\d)", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a version from 3.11 on, such as 3.12")
    return text


if __name__ == "__main__":
    sys.exit(main())
