"""mora COMMAND ...: the commands of the suite. `mora COMMAND --help` gives the arguments of each."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import NamedTuple

from mora import __version__
from mora.errors import did_you_mean, nearest

ROOT = Path(__file__).resolve().parents[1]


class Command(NamedTuple):
    """A command. `module` has main(arguments); `parser`, by default the same module, has parse(arguments, prog).

    Importing `parser` imports no torch.
    """

    help: str
    module: str
    parser: str | None = None


COMMANDS = {
    "table": Command(
        "run what a table or figure misses, then render it", "mora.suite.__main__", "mora.suite.arguments"
    ),
    "plan": Command("the cost of those runs, without starting any", "mora.suite.__main__", "mora.suite.arguments"),
    "data": Command("prepare a task's training data and describe them", "mora.data.__main__"),
    "evaluate": Command("score a checkpoint or adapter", "mora.evaluate.__main__"),
    "compare": Command("test whether two evaluations differ by more than chance", "mora.evaluate.compare"),
    "merge": Command("merge a run's adapter into its base: a model that needs no PEFT", "mora.command.merge"),
    "generate": Command("generate a run's answers to prompts", "mora.command.generate"),
    "spectrum": Command(
        "singular values of the change in weights", "mora.analysis.spectrum", "mora.analysis.arguments"
    ),
}
TRAIN = "one run: train, evaluate, one result (run.py)"


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 if runs failed, or 2 if the command is wrong."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if not (ROOT / "run.py").is_file() or importlib.util.find_spec("mora.suite") is None:
        print(
            "mora: this is the adapter alone, to be imported; `mora-export --help` merges one or makes a LoRA of it. The "
            "commands of the replication suite run in a checkout of its repository, after `make install` there",
            file=sys.stderr,
        )
        return 2
    if name == "help" and rest and rest[0] in ("train", *COMMANDS):
        name, rest = rest[0], ["--help"]
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"mora {__version__}")
        return 0
    if name == "train":
        script = str(ROOT / "run.py")
        os.execv(sys.executable, [sys.executable, script, *rest])
    if name not in COMMANDS:
        meant = did_you_mean(nearest(name, ["train", *COMMANDS]))
        print(f"mora: there is no command {name!r}{meant}; there are train, {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if name == "plan" and not any(argument.split("=")[0] == "--plan" for argument in rest):
        rest = [*rest, "--plan"]
    command = COMMANDS[name]
    importlib.import_module(command.parser or command.module).parse(rest, f"mora {name}")  # --help ends here
    return importlib.import_module(command.module).main(rest) or 0


def _help() -> str:
    commands = {"train": TRAIN, **{name: command.help for name, command in COMMANDS.items()}}
    lines = [f"  {name:10} {text}" for name, text in commands.items()]
    return "\n".join(["usage: mora COMMAND ...    (or python -m mora); mora COMMAND --help", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
