import ast
import json
import subprocess
from pathlib import Path

import pytest

from mora.config import source

CHANGES_NUMBERS = (
    "mora/adapter/layer.py",
    "mora/methods/lora.py",
    "mora/models/load.py",
    "mora/data/chat.py",
    "mora/train/loop.py",
    "mora/evaluate/tasks/mmlu/mmlu.yaml",
    "mora/config/schema.py",
    "configs/task/uuid/paper.yaml",
)
CHANGES_NONE = (
    "mora/suite/latex.py",
    "mora/suite/plan.py",
    "mora/bench/render.py",
    "mora/planner/memory.py",
    "mora/evaluate/tasks/README.md",
    "run.py",
    "README.md",
    "docs/LOG.md",
)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in (*CHANGES_NUMBERS, *CHANGES_NONE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")

    def git(*args):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], cwd=tmp_path, check=True, capture_output=True
        )

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    monkeypatch.setattr(source, "ROOT", tmp_path)
    return tmp_path


def test_committed_source_is_clean(repository):
    described = source.describe()
    assert described["dirty"] is False


@pytest.mark.parametrize("name", CHANGES_NUMBERS)
def test_changed_source_says_so(repository, name):
    (repository / name).write_text("x = 2\n")
    assert source.describe()["dirty"] is True


@pytest.mark.parametrize("name", [*CHANGES_NONE, "results/x.json"])
def test_what_changes_no_number_is_not_asked_for(repository, name):
    """So that a checkpoint is resumed, an evaluation goes on and a result is usable after it."""
    before = source.describe()
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_text("x = 2\n")
    assert source.describe() == before


def test_a_benchmark_is_of_everything(repository):
    assert source.describe(source.EVERYTHING)["dirty"] is False
    (repository / "mora" / "bench" / "render.py").write_text("x = 2\n")
    assert source.describe(source.EVERYTHING)["dirty"] is True


def modules_of_a_run() -> set[Path]:
    """The files of this package that a worker or an evaluation imports, anywhere in their code."""
    root, todo, files = source.ROOT, ["mora.train.__main__", "mora.evaluate.__main__"], set[Path]()
    while todo:
        base = root.joinpath(*todo.pop().split("."))
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if not file.is_file() or file in files:
            continue
        files.add(file)
        package = file.parent.relative_to(root).parts
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parts = [*package[: len(package) - node.level + 1]] if node.level else []
                module = ".".join([*parts, *([node.module] if node.module else [])])
                todo += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return files


def test_whatever_a_run_imports_is_fingerprinted():
    covered = [source.ROOT / path for path in source.NUMBERS.paths]
    outside = [file for file in modules_of_a_run() if not any(file == c or c in file.parents for c in covered)]
    assert outside == []
    assert len(modules_of_a_run()) > 50


def test_committed_results_are_found_by_the_fingerprint_of_their_commit():
    """Of earlier results it is over everything, of later ones over what can change their numbers."""
    sources = [json.loads(path.read_text())["source"] for path in (source.ROOT / "results" / "runs").glob("*.json")]
    found = set()
    for commit, fingerprint in {(one["commit"], one["fingerprint"]) for one in sources}:
        if source.fingerprint_of_commit(commit) is None:
            pytest.skip("the repository's history is not here")
        both = (source.EVERYTHING, source.NUMBERS)
        found.update(files for files in both if source.fingerprint_of_commit(commit, files) == fingerprint)
    assert found == {source.EVERYTHING, source.NUMBERS}
