"""Brings results in that were made from a copied tree: finds the commit whose source they were made with, and records it.

python scripts/collect_results.py FOLDER
python scripts/collect_results.py FOLDER --into results/bench

FOLDER holds <run_id>.json and <run_id>.log.jsonl, or the JSON of a benchmark. `documents` and `spectra`, beside it, hold the
scores of documents and the spectra, as scripts/run_queue.py leaves them; scores may also lie in FOLDER.

A machine without the repository's history cannot tell whether its source was that of a commit, but the fingerprint in each
result can be compared with every commit here. A result that fits none is refused: it came from changed source. So is one
with another run's name, log, documents' scores or spectrum, and one where another of its name is there already, unless
--replace is given; then the documents' scores and the spectrum of the other go with it. The digests of both are added to
digests.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from mora import digests
from mora.config.seal import sealed, unsealed
from mora.config.source import EVERYTHING, NUMBERS, ROOT, fingerprint_of_commit
from mora.errors import MoraError
from mora.evaluate import documents, metrics
from mora.evaluate.aggregate import aggregate
from mora.io import replace_file
from mora.results import Metric, log_digest, read_spectrum
from mora.results import read as read_result

EVIDENCE = {"documents": documents.SUFFIX, "spectra": ".json"}  # folder -> how its files' names end


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
        result, there = _read(path), options.into / path.name
        commit = known.get(result["source"]["fingerprint"])
        earlier = _parsed(there) if options.replace else _read(there) if there.is_file() else None
        is_other = there.is_file() and (earlier is None or _measured(earlier) != _measured(result))
        reason = "its source is that of no commit here" if commit is None else _another(path, result)
        if reason is None and is_other and not options.replace:
            reason = f"{there} is another result; --replace takes this one instead"
        if commit is None or reason is not None:
            print(f"refused {path.name}: {reason}", file=sys.stderr)
            refused += 1
            continue
        if is_other:
            _remove_evidence(there)
        if earlier is None or options.replace or earlier["source"]["dirty"] is not False or _brings_more(path, there):
            result["source"] |= {"commit": commit, "dirty": False}
            _bring(path, result, there)
            print(f"{path.name}: source of {commit[:10]}")
        else:
            print(f"{path.name}: there already")
    return 1 if refused else 0


def _bring(path: Path, result: dict[str, Any], there: Path) -> None:
    """Copy a result with its log, its documents' scores and its spectrum. The result itself is last.

    The digests of the scores, the spectrum, and of a log that the result does not have the digest of, are recorded.
    """
    for kind in EVIDENCE:
        for file in _evidence(path, kind):
            kept = _kept(there, kind)
            kept.parent.mkdir(exist_ok=True)
            replace_file(kept, file.read_bytes())
            digests.add(kept)
    log = path.with_suffix(".log.jsonl")
    if log.is_file():
        kept = there.with_name(log.name)
        replace_file(kept, log.read_text())
        digests.forget(kept) if result.get("log_sha256") else digests.add(kept)
    digests.forget(there)
    replace_file(there, json.dumps(sealed(result), indent=1, sort_keys=True) + "\n")


def _remove_evidence(there: Path) -> None:
    """Remove what another result of that name rested on, as it would now count as this one's."""
    for kind in EVIDENCE:
        if (kept := _kept(there, kind)).is_file():
            digests.forget(kept)
            kept.unlink()
            print(f"removed {kept}: it was of the result that is replaced")


def _brings_more(path: Path, there: Path) -> bool:
    return any(_evidence(path, kind) and not _kept(there, kind).is_file() for kind in EVIDENCE)


def _kept(there: Path, kind: str) -> Path:
    return there.parent.parent / kind / f"{there.stem}{EVIDENCE[kind]}"


def _evidence(path: Path, kind: str) -> list[Path]:
    """Return the files of the documents' scores, or of the spectrum: as in results/, or all in one folder."""
    name = f"{path.stem}{EVIDENCE[kind]}"
    beside = [] if EVIDENCE[kind] == ".json" else [path.with_name(name)]  # that would be the result
    return [file for file in (path.parent.parent / kind / name, *beside) if file.is_file()]


def _another(path: Path, result: dict[str, Any]) -> str | None:
    """Return why the result, its log, documents or spectrum are damaged or another run's; None if they belong together."""
    log, name, digest = path.with_suffix(".log.jsonl"), result.get("run_id"), result.get("log_sha256")
    if name not in (None, "", path.stem):
        return f"it is the result of {name}: expected {name}.json; give it its own name"
    if not log.is_file() and (name, digest) != (None, None):
        return f"{log.name} is missing"
    if digest is not None and digest != log_digest(log.read_text(errors="replace")):
        return f"{log.name} is not the log that its result was written with; bring the log of this run"
    try:
        for file in _evidence(path, "spectra"):
            read_spectrum(file)
        return next((reason for file in _evidence(path, "documents") if (reason := _other_scores(path, file))), None)
    except MoraError as error:
        return str(error)


def _other_scores(path: Path, scores: Path) -> str | None:
    """Return what a result says otherwise than its documents; None if they agree. Raises MoraError if one is damaged."""
    steps = read_result(path).metrics
    last = steps[max(steps)] if steps else {}
    for task, logged in documents.read(scores).items():
        headline = logged.header["headline"]
        score = Metric(value=aggregate(logged.header["aggregation"], [row[headline] for row in logged.rows])).value
        stated = last.get(metrics.key(task, headline))
        if stated is None or not math.isclose(stated.value, score, rel_tol=1e-4, abs_tol=1e-6):
            said = "no such score" if stated is None else f"{stated.value:.6g}"
            return (
                f"{scores} gives {task} {score:.6g}, its result {said}: expected the documents of this run; bring them"
            )
    return None


def _read(path: Path) -> dict[str, Any]:
    if (result := _parsed(path)) is None:
        sys.exit(
            f"collect_results.py: {path} is damaged: expected JSON with source.fingerprint and source.dirty; remove it"
        )
    return result


def _parsed(path: Path) -> dict[str, Any] | None:
    """Return the result; None if there is none, or it is damaged."""
    try:
        result = unsealed(json.loads(path.read_text()))
        return result if {"fingerprint", "dirty"} <= result["source"].keys() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


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
