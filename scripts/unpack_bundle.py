"""Unpacks what make_bundle.py made, on a machine without network. Needs Python 3.11.4 or newer and nothing else.

python3 unpack_bundle.py PIECES TARGET                  # checks every piece and file, installs the wheels into TARGET/site
python3 unpack_bundle.py PIECES TARGET --no-install     # only checks and unpacks
. TARGET/env.sh                                         # from the root of the repository: everything is found from now on

env.sh is written last. A later bundle can be unpacked into the same TARGET. If it has wheels, TARGET/site is emptied first,
so that no older version of a package stays there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path


def main() -> int:
    options = _options()
    target = options.target
    try:
        if not hasattr(tarfile, "data_filter"):
            raise ValueError(
                f"this is Python {sys.version.split()[0]}: expected 3.11.4 or newer; start it with another"
            )
        pieces = _checked_pieces(options.pieces)
        if (target / "site").exists() and not (target / "manifest.json").is_file():
            raise ValueError(f"{target / 'site'} is of no bundle, and would be emptied: give another TARGET")
        target.mkdir(parents=True, exist_ok=True)
        (target / "env.sh").unlink(missing_ok=True)
        with tarfile.open(fileobj=_Joined(pieces), mode="r|") as tar:  # type: ignore[call-overload]
            tar.extractall(target, filter="data")  # refuses entries that would be outside the target
        wheels = [target / name for name in _checked_files(target) if name.endswith(".whl")]
        code = _install(wheels, target) if wheels and options.install else 0
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        print(f"unpack_bundle.py: {error}", file=sys.stderr)
        return 2
    if code:
        return code
    (target / "env.sh").write_text(_environment(target.resolve()))
    print(f"{len(pieces)} pieces, every file as it was: . {target / 'env.sh'}")
    return 0


def _install(wheels: list[Path], target: Path) -> int:
    """Install the wheels as all there is in TARGET/site. Return pip's exit code."""
    shutil.rmtree(target / "site", ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    code = subprocess.run([*pip, "--target", str(target / "site"), *map(str, wheels)]).returncode
    meant = (target / "wheels" / "python.txt").read_text()
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if code and meant != here:
        print(
            f"unpack_bundle.py: the wheels are for Python {meant}, and this is {here}: start it with {meant}, or make "
            f"the bundle with --python {here}",
            file=sys.stderr,
        )
    return code


def _checked_pieces(folder: Path) -> list[Path]:
    """Check the pieces. Raises ValueError, which names the first that is missing or has another digest, or `pieces.json`."""
    listed = folder / "pieces.json"
    try:
        digests = json.loads(listed.read_text())
    except ValueError:
        digests = None
    if not isinstance(digests, dict) or not digests:
        raise ValueError(f"{listed} is not the list of pieces that was made: bring it again")
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


def _checked_files(target: Path) -> list[str]:
    """Return the names of the files that were packed. Raises ValueError if one is another now."""
    manifest = json.loads((target / "manifest.json").read_text())
    for name, facts in manifest.items():
        if hashlib.sha256((target / name).read_bytes()).hexdigest() != facts["sha256"]:
            raise ValueError(f"{target / name} is not the file that was packed")
    return list(manifest)


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
