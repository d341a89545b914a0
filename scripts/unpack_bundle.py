"""Unpacks what make_bundle.py made, on a machine without network. Needs Python 3.10 and nothing else.

python3 unpack_bundle.py PIECES TARGET                  # checks every piece and file, installs the wheels into TARGET/site
python3 unpack_bundle.py PIECES TARGET --no-install     # only checks and unpacks
. TARGET/env.sh                                         # from the root of the repository: everything is found from now on
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path


def main() -> int:
    options = _options()
    try:
        pieces = _checked_pieces(options.pieces)
        options.target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=_Joined(pieces), mode="r|") as tar:  # type: ignore[call-overload]
            tar.extractall(options.target, filter="data")  # refuses entries that would be outside the target
        _check_files(options.target)
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        print(f"unpack_bundle.py: {error}", file=sys.stderr)
        return 2
    wheels = sorted(map(str, (options.target / "wheels").glob("*.whl")))
    if wheels and options.install:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        if code := subprocess.run([*pip, "--target", str(options.target / "site"), *wheels]).returncode:
            return code
    (options.target / "env.sh").write_text(_environment(options.target.resolve()))
    print(f"{len(pieces)} pieces, every file as it was: . {options.target / 'env.sh'}")
    return 0


def _checked_pieces(folder: Path) -> list[Path]:
    """Check the pieces. Raises ValueError, which names the first piece that is missing or has another digest."""
    digests = json.loads((folder / "pieces.json").read_text())
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: bring it again")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder / name} is not the piece that was made: bring it again")
    return [folder / name for name in digests]


class _Joined:
    """The pieces as one file to read from."""

    def __init__(self, pieces: list[Path]):
        self._files = (piece.open("rb") for piece in pieces)
        self._file = next(self._files)

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        while len(block) < size and (following := next(self._files, None)):
            self._file.close()
            self._file = following
            block += self._file.read(size - len(block))
        return block


def _check_files(target: Path) -> None:
    for name, facts in json.loads((target / "manifest.json").read_text()).items():
        if hashlib.sha256((target / name).read_bytes()).hexdigest() != facts["sha256"]:
            raise ValueError(f"{target / name} is not the file that was packed")


def _environment(target: Path) -> str:
    values = {"MORA_CACHE_DIR": target / "cache", "MORA_DATA_DIR": target / "data"}
    lines = [f"export {name}={shlex.quote(str(value))}" for name, value in values.items()]
    offline = "export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1"
    path = f'export PYTHONPATH="$PWD":{shlex.quote(str(target / "site"))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    return "\n".join([*lines, offline, path]) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", type=Path, help="the folder that holds pieces.json")
    parser.add_argument("target", type=Path, help="where everything is put")
    parser.add_argument("--no-install", dest="install", action="store_false", help="leave the wheels as they are")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
