"""What texts and messages ask pip to install is what we mean: `mora` on PyPI is somebody else's remote control."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = {
    canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.M)
}
# Not in the lock: two need a GPU, bitsandbytes serves quantised bases alone, and pip-audit has an environment of its own.
OPTIONAL = {"liger-kernel", "vllm", "bitsandbytes", "pip-audit"}
INSTALL = re.compile(r"\b(?:pip3?|uv pip|pipx|uv tool) install((?:[ \t]+(?:'[^'\n]+'|\"[^\"\n]+\"|[^\s`'\",;)(]+))+)")
SKIPPED = ("results/runs/", "tests/unit/test_installs.py")


def asked_for(text: str) -> list[str]:
    """The names that `pip install` would take from an index: neither options, folders nor addresses."""
    names = []
    for arguments in INSTALL.findall(text):
        words = [word.strip("'\"") for word in re.findall(r"'[^']+'|\"[^\"]+\"|\S+", arguments)]
        for word in words:
            if word in ("as", "needs", "or", "and", "in", "&&"):  # the sentence, or the command, goes on
                break
            if word.startswith(("-", ".", "/", "git+", "http", "{", "$")) or word.endswith((".lock", ".txt")):
                continue
            names.append(word)
    return names


def texts() -> list[Path]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git here: which files are the repository's is not known")
    files = [ROOT / name for name in listed.stdout.splitlines() if not name.startswith(SKIPPED)]
    return [
        path
        for path in files
        if path.suffix not in (".safetensors", ".zst", ".png", ".svg", ".jsonl") and path.is_file()
    ]


def wrong(names: list[str]) -> list[str]:
    """Those that are neither locked nor known, this project's own import name before all."""
    unknown = []
    for name in names:
        try:
            base = canonicalize_name(Requirement(name).name)
        except InvalidRequirement:
            base = name
        if base not in LOCKED | OPTIONAL:
            unknown.append(name)
    return unknown


def test_the_distribution_is_not_named_as_somebody_elses() -> None:
    assert PROJECT["name"] == "mora-peft"


def test_no_text_asks_pip_for_a_name_that_is_not_meant() -> None:
    by_file = {str(p.relative_to(ROOT)): wrong(asked_for(p.read_text(errors="ignore"))) for p in texts()}
    assert {path: names for path, names in by_file.items() if names} == {}


@pytest.mark.parametrize(
    "text",
    ["pip install 'mora[joblib]'", "`pip install mora`", "pip install -U mora, then", 'uv pip install "mora[suite]"'],
)
def test_a_bare_mora_would_be_found(text: str) -> None:
    assert wrong(asked_for(text)) != []


@pytest.mark.parametrize("text", ["pip install '.[joblib]'", "pip install .", "pip install -r requirements.lock"])
def test_the_checkout_is_no_name(text: str) -> None:
    assert asked_for(text) == []


def test_every_extra_that_is_named_exists() -> None:
    named = {extra for path in texts() for extra in re.findall(r"'\.\[(\w+)\]'", path.read_text(errors="ignore"))}
    assert named
    assert named <= PROJECT["optional-dependencies"].keys()


def test_what_a_model_names_as_its_package_is_locked_or_pinned_by_digest() -> None:
    """A requirement of configs/model is what messages ask for, and what is fetched."""
    models = [yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / "model").glob("*.yaml")]
    packaged = [m for m in models if any("requirement" in file for file in m.get("files") or [])]
    assert packaged
    for model in packaged:
        assert model["sha256"], model["name"]
        for requirement in (file["requirement"] for file in model["files"] if "requirement" in file):
            assert "==" in requirement, f"{model['name']}: {requirement} is no exact pin"
