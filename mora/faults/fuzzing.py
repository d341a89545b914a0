"""All kinds of fuzzed inputs, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import strategies as st

from mora.train.run_messages import quiet

from . import command_lines, readers, set_up
from .inputs import LIMIT_S, Fuzzed, fuzz

__all__ = ["LIMIT_S", "all_kinds"]
PROCESSES = 12  # command lines that are asked of run.py itself


def all_kinds(number: int, seed: int, scratch: Path, wanted: Callable[[str], bool]) -> Iterator[Fuzzed]:
    """Try `number` command lines, a hundredth of them again as processes, and a fifth as many inputs of each other kind."""
    quiet()
    logging.disable(logging.WARNING)  # lm-eval greets every task
    scratch.mkdir(exist_ok=True)
    if wanted("command lines"):
        lines = fuzz("command lines", command_lines.command_lines(), command_lines.ask, number, seed)
        yield lines
        asked = [line for line in lines.refusals if command_lines.can_be_passed(line)]
        again, some = asked[:: max(1, len(asked) // PROCESSES)], min(PROCESSES, -(-number // 100))
        yield fuzz("run.py", st.sampled_from(again), command_lines.through_run_py, some, seed)
    if wanted("set-ups"):
        yield fuzz("set-ups", set_up.configurations(), lambda line: set_up.ask(scratch, line), number // 5, seed)
    for kind in readers.kinds(scratch):
        if wanted(kind.name):
            yield fuzz(kind.name, kind.inputs, kind.ask, number // 5, seed)
