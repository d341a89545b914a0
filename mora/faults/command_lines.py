"""Fuzzed command lines of run.py, asked in this process: all that it does before a worker is started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from typing import Any

from hydra.errors import HydraException
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from omegaconf.errors import OmegaConfBaseException

from mora.config.hints import choices
from mora.config.hydra_compose import check_sweep, compose, hydra_line
from mora.errors import MoraError, short
from mora.io import ROOT
from mora.suite import preflight
from mora.suite.default_lr import default_lr

from .inputs import Refused
from .values import typed

METHODS = [method for method in choices("method") if method != "peft"]  # which needs a file
GROUPS = ("task", "method", "scale", "model", "hardware", "tracker", "sweep")
OTHER = (
    "+new",
    "++new",
    "~task",
    "~task.train",
    "~seed",
    "no_such",
    "task.no_such",
    "hydra.run.dir",
    "+task",
    "a.b.c",
    "",
)


@st.composite
def command_lines(draw: Any) -> tuple[list[str], list[str]]:
    """Arguments, and which of them are not as they should be."""
    base = {"task": draw(st.sampled_from(choices("task"))), "method": draw(st.sampled_from(METHODS))}
    base["scale"] = draw(st.sampled_from(choices(f"task/{base['task']}")))
    if base["method"] not in ("none", "fft"):
        base["r"] = "8"
    keys = keys_of(base["task"], base["method"])
    changed = draw(st.one_of([st.lists(st.tuples(_of(keys), typed()), min_size=1, max_size=n) for n in (1, 1, 3)]))
    odd = [f"{key}={value}" for key, value in changed]
    if draw(st.integers(0, 9)) == 0:
        odd.append(draw(typed()))
    return [*(f"{key}={value}" for key, value in base.items()), *odd], odd


def _of(keys: tuple[str, ...]) -> SearchStrategy[str]:
    return st.one_of(st.sampled_from(keys), st.sampled_from(keys), st.sampled_from((*GROUPS, *OTHER)))


@cache
def keys_of(task: str, method: str) -> tuple[str, ...]:
    """Every field and section of such a run."""
    rank = [] if method in ("none", "fft") else ["r=8"]
    values = compose([f"task={task}", f"method={method}", "scale=smoke", *rank]).model_dump()
    keys: list[str] = []

    def walk(name: str, value: Any) -> None:
        keys.append(name)
        if isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(key, str) and re.fullmatch(r"\w+", key):
                    walk(f"{name}.{key}", inner)

    for name, value in values.items():
        walk(name, value)
    return tuple(keys)


def ask(line: tuple[list[str], list[str]]) -> None:
    """As run.py does. Raises: Refused."""
    arguments, odd = line
    try:
        check_sweep(arguments)
        config = compose(arguments)
        if not any(re.match(r"lr=(?!null$)", argument) for argument in arguments) and config.method.trains:
            config, _ = default_lr(config)
        preflight.check(config)
    except (MoraError, HydraException, OmegaConfBaseException, OSError) as error:
        raise Refused(hydra_line(error), names(odd)) from error


def names(odd: list[str]) -> list[str]:
    """One of which a refusal has to have: the last part of a key, or the argument, as it is shown where it is long."""
    keys = [argument.partition("=")[0].lstrip("+~").rpartition(".")[2] for argument in odd]
    shown = [form for argument in odd for form in (short(argument), short(repr(argument)))]
    return [name for name in (*keys, *shown) if name]


def can_be_passed(line: tuple[list[str], list[str]]) -> bool:
    """Return whether Linux starts a process with these arguments, each of which may have 128 KiB."""
    return all(len(os.fsencode(word)) < 2**17 for word in line[0])


def through_run_py(line: tuple[list[str], list[str]]) -> None:
    """Ask `run.py` for a line that is known to be refused, in a process of its own.

    Raises:
        Refused: The process refused the line in one line of text.
        RuntimeError: The process did anything else.
    """
    command = [sys.executable, "run.py", *line[0]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=300)
    message = done.stderr.strip()
    if done.returncode == 0 or "Traceback" in message or done.stdout:
        raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-200:]} {message[-500:]}")
    raise Refused(message, ["run.py: "])
