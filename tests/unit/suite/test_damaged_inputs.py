"""Damaged files through the real command lines: one line that names the file, no traceback, and nothing is overwritten."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from mora.config.source import ROOT

NEEDED = ("mora", "configs", "experiments", "README.md", "run.py", "pyproject.toml")
RENDER, RUN = ["mora.suite", "--render"], ["mora.suite", "table2", "--scale", "lite"]
PLAN = [*RUN, "--plan"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with its committed results, where a test may damage them."""
    folder = tmp_path_factory.mktemp("copy")
    for name in NEEDED:
        source = ROOT / name
        copied = shutil.copytree if source.is_dir() else shutil.copy
        copied(source, folder / name)
    shutil.copytree(ROOT / "results", folder / "results", ignore=shutil.ignore_patterns("outdated"))
    shutil.copytree(ROOT / "docs", folder / "docs")
    return folder


def contents(folder):
    return {path: path.read_bytes() for part in ("results", "README.md", "docs") for path in files(folder / part)}


def files(path):
    return [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]


def said(folder, arguments):
    """The exit code, and what a command says of what is wrong."""
    env = os.environ | {"PYTHONPATH": str(folder), "MORA_OUTPUT_DIR": str(folder / "outputs"), "HF_HUB_OFFLINE": "1"}
    made = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    return made.returncode, made.stderr


def changed(path: Path, field: str, value: object) -> bytes:
    values = json.loads(path.read_text())
    *above, last = field.split(".")
    section = values
    for name in above:
        section = section[name]
    section[last] = value
    return json.dumps(values).encode()


RESULT, SPECTRUM = "runs/uuid-mora-r1-lr3e-3-s0-*.json", "spectra/c4-mora-*-s1-*.json"
EARLY = "runs/uuid-mora-r8-lr1e-3-s0-459f6fda44.json"  # not sealed
LOG, BENCH = "runs/c4-mora-r128-lr1e-3-s1-*.log.jsonl", "bench/step-full-*.json"
DAMAGE = [
    ("cut", RENDER, RESULT, lambda path: path.read_bytes()[:500]),
    ("wrong type", RENDER, RESULT, lambda path: changed(path, "status", 3)),
    ("unknown field", RUN, RESULT, lambda path: changed(path, "source.colour", "red")),
    ("other version", RUN, RESULT, lambda path: changed(path, "format", 99)),
    ("NaN", RENDER, RESULT, lambda path: changed(path, "last_step", float("nan"))),
    ("huge", RENDER, RESULT, lambda path: changed(path, "parameters.trainable", 10**400)),
    ("huge", RUN, RESULT, lambda path: b"[" * 100_000),
    ("nothing", PLAN, RESULT, lambda path: b""),
    (
        "another number",
        RENDER,
        EARLY,
        lambda path: path.read_bytes().replace(b'"last_step": 300', b'"last_step": 299'),
    ),
    ("cut", RENDER, SPECTRUM, lambda path: path.read_bytes()[:500]),
    ("another run's", RENDER, SPECTRUM, lambda path: next(path.parent.glob("c4-lora-*-s1-*")).read_bytes()),
    ("wrong type", RENDER, BENCH, lambda path: changed(path, "scenarios", 3)),
    ("cut", RENDER, LOG, lambda path: path.read_bytes()[:5000]),
]


@pytest.mark.parametrize(("kind", "command", "pattern", "damage"), DAMAGE)
def test_a_damaged_file_ends_a_command_in_one_line_and_nothing_is_overwritten(copy, kind, command, pattern, damage):
    path = sorted((copy / "results").glob(pattern))[0]
    whole = path.read_bytes()
    path.write_bytes(damage(path))
    try:
        before = contents(copy)
        code, error = said(copy, command)
        assert (code, error.count("\n")) == (2, 1), error[-2000:]
        assert error.startswith(f"mora.suite: {path}"), error
        assert contents(copy) == before
    finally:
        path.write_bytes(whole)


def test_compare_refuses_damaged_scores_in_one_line(copy):
    first, second = sorted((copy / "results/documents").glob("c4-*"))[:2]
    values = json.loads(zstandard.ZstdDecompressor().decompress(first.read_bytes(), 2**30))
    values["items"][3] = ["x", 255]
    wrong = zstandard.compress(json.dumps(values).encode())
    elsewhere = copy / second.name
    for content in (first.read_bytes()[:100], b"", wrong):
        elsewhere.write_bytes(content)
        code, error = said(copy, ["mora.evaluate.compare", str(first), str(elsewhere)])
        assert (code, error.count("\n")) == (2, 1), error
        assert f"{elsewhere} holds no document scores" in error
        assert elsewhere.read_bytes() == content
    shutil.copy(first, second)
    code, error = said(copy, ["mora.evaluate.compare", str(first), str(second)])
    assert (code, error.count("\n")) == (2, 1), error
    assert f"{second} is damaged: it is not the file that" in error
