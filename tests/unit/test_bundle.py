"""A bundle: made, cut, carried, checked and unpacked; what is missing or another is named."""

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from mora.config.source import ROOT


def script(name, *arguments, **env):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | env)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """2.5 MiB of data in pieces of 1 MiB."""
    root = tmp_path_factory.mktemp("made")
    data = root / "gsm8k"
    data.mkdir()
    (data / "train.jsonl").write_bytes(os.urandom(5 * 2**19))
    done = script("make_bundle.py", root / "pieces", "--extras", "--data", data, "--piece-mib", 1)
    assert done.returncode == 0, done.stderr
    return root


def test_what_was_packed_comes_out_again(made, tmp_path):
    assert len(list((made / "pieces").glob("bundle.*"))) == 3
    done = script("unpack_bundle.py", made / "pieces", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there/data/gsm8k/train.jsonl").read_bytes() == (made / "gsm8k/train.jsonl").read_bytes()
    shell = f". {tmp_path}/there/env.sh; echo $MORA_DATA_DIR $HF_HUB_OFFLINE $PYTHONPATH"
    said = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path, env={"PATH": "/bin:/usr/bin"}
    )
    assert said.stdout.split() == [f"{tmp_path}/there/data", "1", f"{tmp_path}:{tmp_path}/there/site"]


def test_a_folder_site_that_no_bundle_made_is_not_emptied(made, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    done = script("unpack_bundle.py", made / "pieces", tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == f"unpack_bundle.py: {tmp_path}/site is of no bundle, and would be emptied: give another TARGET\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_the_same_files_make_the_same_pieces(made, tmp_path):
    script("make_bundle.py", tmp_path, "--extras", "--data", made / "gsm8k", "--piece-mib", 1)
    assert (tmp_path / "pieces.json").read_text() == (made / "pieces/pieces.json").read_text()


@pytest.mark.parametrize(
    ("damage", "said"), [(os.remove, "is missing"), (lambda path: path.write_bytes(b""), "is not the")]
)
def test_a_piece_that_is_missing_or_another_is_named(made, tmp_path, damage, said):
    for path in (made / "pieces").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / "bundle.001")
    done = script("unpack_bundle.py", tmp_path, tmp_path / "there")
    assert done.returncode == 2
    assert f"bundle.001 {said}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "there").exists()


def test_nothing_is_written_outside_the_target(tmp_path):
    with tarfile.open(tmp_path / "bundle.000", "w") as tar:
        entry = tarfile.TarInfo("../outside")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    digest = hashlib.sha256((tmp_path / "bundle.000").read_bytes()).hexdigest()
    (tmp_path / "pieces.json").write_text(json.dumps({"bundle.000": digest}))
    done = script("unpack_bundle.py", tmp_path, tmp_path / "there")
    assert done.returncode == 2
    assert "outside" in done.stderr
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--extras", "none_such"], "--extras none_such: expected some of suite"),
        (
            ["--models", "none_such"],
            "--models none_such: expected one whose weights are a GGUF file; there are qwen25_",
        ),
        (["--data", "/none/such"], "--data /none/such: there is no such folder"),
        (["--has", "/none/such"], "--has /none/such: there is no such file; make it with `python -m pip list"),
        (["--extras", "--piece-mib", "0"], "--piece-mib: '0': expected a whole number above 0"),
        (["--extras", "--python", "312"], "--python: '312': expected a version from 3.11 on, such as 3.12"),
    ],
)
def test_what_cannot_be_packed_is_said(tmp_path, arguments, said):
    done = script("make_bundle.py", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == "", "nothing was fetched before"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "{}", '["bundle.000"]'])
def test_a_list_of_pieces_that_is_damaged_is_named(made, tmp_path, text):
    (tmp_path / "pieces.json").write_text(text)
    done = script("unpack_bundle.py", tmp_path, tmp_path / "there")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"unpack_bundle.py: {tmp_path}/pieces.json is not the list of pieces that was made: bring it again\n"
    )


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bundle_of(version, folder, python="3.11"):
    """A bundle with one wheel."""
    bundles, tree = loaded("make_bundle"), folder / "tree"
    (tree / "wheels").mkdir(parents=True)
    (tree / "wheels/python.txt").write_text(python)
    with zipfile.ZipFile(tree / f"wheels/one-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("one.py", f"version = '{version}'")
        of = f"one-{version}.dist-info"
        wheel.writestr(
            f"{of}/METADATA", f"Metadata-Version: 2.1\nName: one\nVersion: {version}\nRequires-Python: >={python}\n"
        )
        wheel.writestr(f"{of}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{of}/RECORD", "")
    bundles._manifest(tree)
    bundles._cut(tree, folder / "pieces", 2**20)
    return folder / "pieces"


def test_a_later_bundle_takes_the_place_of_an_earlier_one(tmp_path):
    for version in ("1.0", "2.0"):
        done = script("unpack_bundle.py", bundle_of(version, tmp_path / version), tmp_path / "there")
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "there/site").glob("one-*")} == {"one-2.0.dist-info"}


def test_wheels_of_another_python_are_named_and_nothing_says_that_all_is_there(tmp_path):
    done = script("unpack_bundle.py", bundle_of("1.0", tmp_path, python="3.99"), tmp_path / "there")
    assert done.returncode == 1
    assert "the wheels are for Python 3.99, and this is 3." in done.stderr
    assert not (tmp_path / "there/env.sh").exists()


def test_a_package_is_needed_with_every_extra_and_as_on_the_other_python(monkeypatch):
    bundles = loaded("make_bundle")
    of = {"a": ["b", "b[more]", "old; python_version < '3.12'"], "b": ["c; extra == 'more'"], "c": [], "old": []}
    monkeypatch.setattr(bundles, "requires", lambda name: of.get(name, []))
    monkeypatch.setattr(bundles.tomllib, "loads", lambda _: {"project": {"optional-dependencies": {"suite": ["a"]}}})
    assert bundles.needed(["suite"], "3.12") == {"a", "b", "c"}
    assert bundles.needed(["suite"], "3.11") == {"a", "b", "c", "old"}


def test_what_the_extras_need_is_what_their_packages_say():
    needed = loaded("make_bundle").needed(["suite", "deepspeed"], "3.12")
    assert {"torch", "lm-eval", "hydra-core", "antlr4-python3-runtime", "deepspeed", "ninja", "word2number"} <= needed
    assert not {"pytest", "ruff", "wandb"} & needed
