"""Imports point one way: a package knows those in lower layers and none in higher ones."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from mora.config.source import NUMBERS
from mora.io import ROOT

# From the bottom up. Packages of one layer know nothing of each other. The adapter and its restarts, which a wheel holds,
# know torch and PEFT alone.
LAYERS = (
    ("choices", "errors", "imports", "io", "padding", "ranks"),
    ("digests", "frozen", "sizes"),
    ("adapter",),
    ("restarts",),
    ("families",),
    ("config",),
    ("data",),
    ("models",),
    ("methods",),
    ("evaluate",),
    ("results",),
    ("train", "planner"),
    ("suite",),
    ("analysis", "bench", "checks", "command", "faults"),  # instruments
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
OF_THE_WHEEL = {"choices", "io", "ranks", "sizes", "adapter", "restarts", "mora"}
OF_THE_SUITE = LAYER_OF.keys() - OF_THE_WHEEL


class Import(NamedTuple):
    where: str
    of: str
    package: str


def package_of(module: str) -> str:
    """The package or file below `mora`; "mora" of the package itself."""
    _, *below = module.split(".")
    return below[0] if below and below[0] != "__init__" else "mora"


def imports(file: Path, root: Path = ROOT) -> list[Import]:
    """Every import of this package in the file, in functions and under TYPE_CHECKING too."""
    parts = file.relative_to(root).with_suffix("").parts
    own, found_imports = package_of(".".join(parts)), []
    for node in ast.walk(ast.parse(file.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [*parts[: len(parts) - node.level]] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            modules = [f"{module}.{alias.name}" for alias in node.names] if module == "mora" else [module]
        found_imports += [
            Import(f"{file.relative_to(root)}:{node.lineno}", own, package_of(module))
            for module in modules
            if module.split(".")[0] == "mora" and package_of(module) != own
        ]
    return found_imports


def all_imports() -> list[Import]:
    """A package's `__main__` is an entry point: it is in the highest layer, wherever it lies."""
    files = [file for file in sorted((ROOT / "mora").rglob("*.py")) if file.name != "__main__.py"]
    return [found for file in files for found in imports(file)]


def test_every_package_has_a_layer():
    folder = ROOT / "mora"
    packages = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert packages - {"__init__", "__main__"} == LAYER_OF.keys()


def test_no_package_imports_a_higher_layer():
    """`import mora` registers the adapter: whoever loads adapters may do that."""
    checked = [i for i in all_imports() if "mora" not in (i.of, i.package)]
    upward = [f"{i.where}: {i.of} -> {i.package}" for i in checked if LAYER_OF[i.package] >= LAYER_OF[i.of]]
    assert upward == []
    assert len(checked) > 300


def test_the_wheel_needs_nothing_of_the_suite():
    inside = [i for i in all_imports() if i.of in OF_THE_WHEEL]
    assert [f"{i.where}: {i.package}" for i in inside if i.package in OF_THE_SUITE] == []


def test_a_fingerprint_covers_every_layer_below_the_suite():
    """But plans, which decide no number: a package that is new below the suite is covered, and none above it."""
    modules = [path.removesuffix(".py").replace("/", ".") for path in NUMBERS.paths if path.startswith("mora/")]
    below = {package for layer in LAYERS[: LAYER_OF["suite"]] for package in layer}
    assert {package_of(module) for module in modules} == below - {"planner"} | {"mora"}


@pytest.mark.parametrize("line", ["from mora.suite import runner", "def f():\n    import mora.train.loop"])
def test_an_import_of_a_higher_layer_is_found(line, tmp_path):
    file = tmp_path / "mora" / "data" / "new.py"
    file.parent.mkdir(parents=True)
    file.write_text(line)
    (found,) = imports(file, tmp_path)
    assert LAYER_OF[found.package] > LAYER_OF[found.of]


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("mora.train.worker", ("hydra",)),
        ("mora.suite.__main__", ("torch", "transformers", "peft")),
        ("mora.planner.cost", ("torch", "transformers", "peft")),
        ("run", ("torch", "transformers", "peft")),
    ],
)
def test_what_is_not_needed_is_not_imported(module, without):
    code = f"import sys, {module}; print(*(name for name in {without!r} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr


def test_the_rank_is_asked_for_in_one_place():
    """There, a process without a group has a rank, too."""
    asking = [file for file in (ROOT / "mora").rglob("*.py") if "get_rank(" in file.read_text()]
    assert asking == [ROOT / "mora" / "ranks.py"]


def test_choices_are_spelled_once():
    """A new operator, or another value of an option, is then added on one line."""
    spelled = [
        (ast.unparse(node), str(file.relative_to(ROOT)))
        for file in sorted((ROOT / "mora").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"
    ]
    here = {text for text, file in spelled if file == "mora/choices.py"}
    assert len(here) == 8
    assert [(text, file) for text, file in spelled if text in here and file != "mora/choices.py"] == []


def test_files_and_functions_are_short():
    """CONTRIBUTING.md, Style: a file has under 400 lines, a function under 60, its signature and docstring included."""
    files = [file for folder in ("mora", "scripts", "examples", "tests") for file in (ROOT / folder).rglob("*.py")]
    sizes = {}
    for file in sorted(files):
        text, name = file.read_text(), file.relative_to(ROOT).as_posix()
        sizes[name] = (len(text.splitlines()), 400)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes[f"{name}:{node.lineno} {node.name}"] = (node.end_lineno - node.lineno + 1, 60)
    assert {where: lines for where, (lines, limit) in sizes.items() if lines >= limit} == {}


SET_BY_OTHERS = {
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.datetime.now",
    "datetime.utcnow",
    "time.localtime",
}


def test_nothing_is_decided_by_a_clock_that_can_be_set():
    """Ages, deadlines and durations are told by `time.monotonic`, which neither jumps nor differs between machines."""
    files = [ROOT / "run.py", *(ROOT / "mora").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    asked = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in SET_BY_OTHERS
    ]
    assert asked == []
