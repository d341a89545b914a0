"""`mora COMMAND`: quick answers about arguments, without torch, and the same code as the modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mora.__main__ import COMMANDS, main
from mora.data import __main__ as data

ROOT = Path(__file__).resolve().parents[3]
LIMIT_CPU_S = 2.5  # twice and more of what the slowest takes on an old CPU; torch alone takes longer


@pytest.mark.parametrize("name", ["", "train", *COMMANDS])
def test_help_is_quick_and_imports_no_torch(name):
    shown = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, sum(__import__('os').times()[:2])))"
    )
    as_command = (
        f"import runpy; sys.argv = {['mora', *name.split(), '--help']}; runpy.run_module('mora', None, '__main__')"
    )
    if name == "train":  # another process, in its place
        as_command = (
            f"import runpy; sys.argv = ['run.py', '--help']; runpy.run_path({str(ROOT / 'run.py')!r}, None, '__main__')"
        )
    ran = subprocess.run([sys.executable, "-c", f"{shown}; {as_command}"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *text, last = ran.stdout.splitlines()
    assert " ".join(text).startswith(("usage: mora", "python run.py"))
    assert f"mora {name}" in text[0] or not name or name == "train"
    torch, seconds = last.split()
    assert torch == "False"
    assert float(seconds) < LIMIT_CPU_S


def test_train_is_run_py():
    command = [sys.executable, "-m", "mora", "train", "task=uuid", "method=morra", "r=8"]
    ran = subprocess.run(
        command, cwd=ROOT.parent, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "did you mean method=mora?" in ran.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["tabel", "table1"], "there is no command 'tabel'; did you mean table?"),
        (["--nothing"], "there is no command '--nothing'; there are train, table, "),
        (["table", "table99"], "table99"),
        (["merge", "none_such"], "mora merge: 'none_such': expected a run's id or folder, or a folder with an adapter"),
    ],
)
def test_what_cannot_be_asked_ends_with_2(wrong, said, capsys):
    assert main(wrong) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["table", "table1", "--scale", "huge"],
        ["evaluate", "tiny"],
        ["evaluate", "tiny", "--task", "uuid", "--limit", "0"],
        ["data"],
        ["compare", "one"],
        ["generate", "tiny"],
        ["generate", "tiny", "a", "--temperature", "-1"],
        ["spectrum", "one"],
    ],
)
def test_wrong_arguments_end_with_2_and_name_the_command(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert f"mora {wrong[0]}: error: " in capsys.readouterr().err


def test_only_what_is_needed_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["data"])
    assert capsys.readouterr().err.endswith("the following arguments are required: task\n")


def test_help_of_a_command_is_asked_for_either_way(capsys):
    said = []
    for asked in (["help", "data"], ["data", "--help"]):
        with pytest.raises(SystemExit):
            main(asked)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "usage: mora data" in said[0]


def test_a_task_may_be_written_as_for_train():
    assert data.parse(["task=uuid"]).task == data.parse(["uuid"]).task == "uuid"


def test_plan_starts_nothing(capsys):
    assert main(["plan", "table2", "--scale", "smoke", "--only", "method=fft", "--results", "/nonexistent/none"]) == 0
    assert "uuid-fft" in capsys.readouterr().out


def test_a_misspelt_task_is_found_before_a_model_is_loaded(monkeypatch, capsys):
    from mora.evaluate import __main__ as command
    from mora.evaluate import harness, score_checkpoint

    monkeypatch.setattr(score_checkpoint, "load_any", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(harness, "_manager", _of_uuid_alone)
    assert command.main(["tiny", "--task", "uuuid"]) == 2
    assert "tasks are wrong" in capsys.readouterr().err


def _of_uuid_alone(tasks, metadata=None):
    from mora.config import ConfigError

    raise ConfigError(f"{tasks}: tasks are wrong")
