"""Brings results in that were made from a copied tree: finds the commit whose source they were made with, and records it.

python scripts/collect_results.py FOLDER
python scripts/collect_results.py FOLDER --into results/bench

FOLDER holds <run_id>.json and <run_id>.log.jsonl, or the JSON of a benchmark. A machine without the repository's history
cannot tell whether its source was that of a commit, but the fingerprint in each result can be compared with every commit
here. A result that fits none is refused: it came from changed source. So is one where another of its name is there already,
unless --replace is given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mora.config.seal import sealed, unsealed
from mora.config.source import EVERYTHING, NUMBERS, ROOT, fingerprint_of_commit
from mora.io import replace_file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the results are")
    parser.add_argument("--into", type=Path, default=ROOT / "results/runs", help="default: results/runs")
    parser.add_argument("--replace", action="store_true", help="take these where there are others of the same name")
    options = parser.parse_args()
    if not list(options.folder.glob("*.json")):
        sys.exit(f"collect_results.py: {options.folder} holds no *.json: expected a folder of results")
    refused = 0
    options.into.mkdir(parents=True, exist_ok=True)
    known = commits_by_fingerprint()
    for path in sorted(options.folder.glob("*.json")):
        result, log, there = _read(path), path.with_suffix(".log.jsonl"), options.into / path.name
        commit = known.get(result["source"]["fingerprint"])
        earlier = _read(there) if there.is_file() and not options.replace else None
        reason = None
        if commit is None:
            reason = "its source is that of no commit here"
        elif "run_id" in result and not log.is_file():
            reason = f"{log.name} is missing"
        elif earlier is not None and _measured(earlier) != _measured(result):
            reason = f"{there} is another result; --replace takes this one instead"
        if commit is None or reason is not None:
            print(f"refused {path.name}: {reason}", file=sys.stderr)
            refused += 1
        elif earlier is not None and earlier["source"]["dirty"] is False:
            print(f"{path.name}: there already")
        else:
            result["source"] |= {"commit": commit, "dirty": False}
            documents = path.parent.parent / "documents" / f"{path.stem}.jsonl.zst"
            for scores in (documents, path.with_suffix(".jsonl.zst")):  # as in results/, or all in one folder
                if scores.is_file():
                    (options.into.parent / "documents").mkdir(exist_ok=True)
                    replace_file(options.into.parent / "documents" / scores.name, scores.read_bytes())
            if log.is_file():
                replace_file(options.into / log.name, log.read_text())
            replace_file(there, json.dumps(sealed(result), indent=1, sort_keys=True) + "\n")
            print(f"{path.name}: source of {commit[:10]}")
    return 1 if refused else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        result = unsealed(json.loads(path.read_text()))
        if {"fingerprint", "dirty"} <= result["source"].keys():
            return result
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    sys.exit(
        f"collect_results.py: {path} is damaged: expected JSON with source.fingerprint and source.dirty; remove it"
    )


def _measured(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without what is known about its commit."""
    return result | {"source": result["source"]["fingerprint"]}


def commits_by_fingerprint() -> dict[str, str]:
    """Return the newest commit of each fingerprint.

    There are two kinds: fingerprints of the files that change numbers, and of all files, which benchmarks have, and runs
    had before 2026-11-28.
    """
    listed = subprocess.run(["git", "-C", str(ROOT), "log", "--format=%H"], capture_output=True, text=True, check=True)
    commits: dict[str, str] = {}
    for commit in listed.stdout.split():
        for files in (NUMBERS, EVERYTHING):
            fingerprint = fingerprint_of_commit(commit, files)
            if fingerprint is not None:
                commits.setdefault(fingerprint, commit)
    return commits


if __name__ == "__main__":
    sys.exit(main())
