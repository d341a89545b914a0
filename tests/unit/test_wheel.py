"""What `pip install .` gives: the PEFT method with its restarts and export, and nothing that needs the suite."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mora

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

USE = """
    import importlib.util, sys
    sys.modules["fcntl"] = None  # as on Windows
    assert not any(importlib.util.find_spec(name) for name in ("omegaconf", "hydra", "datasets", "deepspeed", "lm_eval"))
    from pathlib import Path
    import mora
    assert Path(mora.__file__).is_relative_to(Path("installed").absolute()), mora.__file__
    assert importlib.util.find_spec("mora.suite") is None
    import torch, peft
    from mora import MoraConfig, RestartCallback, restore_base
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), MoraConfig(r=1, target_modules=["0"]))
    model(torch.randn(2, 8)).sum().backward()
    model.save_pretrained("adapter")
    peft.PeftModel.from_pretrained(torch.nn.Sequential(torch.nn.Linear(8, 8)), "adapter").merge_and_unload()
    RestartCallback(every_steps=2, warmup_steps=1)
    from mora.adapter.export import main
    from mora.__main__ import main as of_the_suite
    assert of_the_suite(["table", "table1"]) == of_the_suite([]) == 2
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("setuptools", minversion="77.0.3")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "mora", source / "mora", ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        "dist",
        ".",
    ]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_it_holds_the_method_and_no_part_of_the_suite(wheel):
    files = {Path(name) for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = {"mora", "mora/adapter", "mora/restarts"}
    expected = {path.relative_to(ROOT) for name in packages for path in (ROOT / name).glob("*.py")}
    assert files == expected | {Path("mora/py.typed")}


def test_it_names_its_version_its_dependencies_and_its_command(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = next(archive.read(n).decode() for n in archive.namelist() if n.endswith("dist-info/METADATA"))
    assert f"\nVersion: {mora.__version__}\n" in metadata
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    names = {canonicalize_name(Requirement(line.partition(": ")[2]).name) for line in needs}
    assert names == {"torch", "transformers", "peft", "aenum"}
    commands = next(archive.read(n).decode() for n in archive.namelist() if n.endswith("entry_points.txt"))
    assert "mora-export = mora.adapter.export:main" in commands
    assert "mora = mora.__main__:main" in commands


def dependencies() -> set[str]:
    """Everything that torch, transformers, peft and aenum ask for, of what is installed here."""
    names: set[str] = set()
    pending = ["torch", "transformers", "peft", "aenum"]
    while pending:
        name = canonicalize_name(pending.pop())
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if name not in names:
                needed = [Requirement(line) for line in importlib.metadata.distribution(name).requires or []]
                pending += [n.name for n in needed if n.marker is None or n.marker.evaluate({"extra": ""})]
                names.add(name)
    return names


def test_it_works_where_only_its_dependencies_are(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    (site := tmp_path / "site").mkdir()
    for name in dependencies():
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'installed'}:{site}"}
    command = [sys.executable, "-S", "-c", textwrap.dedent(USE)]
    used = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert used.returncode == 0, used.stderr
    assert used.stderr.count("mora: this is the adapter alone") == 2
