"""Fuzzed inputs: each is taken, or refused in one line that names what is wrong; no traceback, and soon."""

from __future__ import annotations

import resource
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.strategies import SearchStrategy

LIMIT_S = 3.0
LINE = 2000  # characters of a refusal, however long the value


@dataclass
class Fuzzed:
    """The outcome for one kind of input.

    `wrong` has a line for every input that was neither taken nor refused as it should be; `refusals` has the inputs that
    were refused. Seconds are the CPU's, which other processes do not lengthen.
    """

    kind: str
    inputs: int = 0
    taken: int = 0
    refused: int = 0
    tracebacks: int = 0
    slowest_s: float = 0.0
    refusals: list[Any] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Refused(Exception):
    """The input was refused, with this message; `names`: one of them must be in it."""

    def __init__(self, message: str, names: Sequence[str]):
        super().__init__(message)
        self.names = names


def fuzz(kind: str, inputs: SearchStrategy[Any], ask: Callable[[Any], None], number: int, seed: int) -> Fuzzed:
    """Try `number` inputs that follow from `seed`.

    `ask` raises Refused for what it refuses; anything else that it raises would be a traceback.
    """
    fuzzed = Fuzzed(kind)

    @seeded(seed)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(value: Any) -> None:
        with _judged(fuzzed, value):
            ask(value)

    one()
    return fuzzed


@contextmanager
def _judged(fuzzed: Fuzzed, value: Any) -> Any:
    fuzzed.inputs += 1
    started = _cpu_s()
    try:
        yield
        fuzzed.taken += 1
    except Refused as refusal:
        fuzzed.refused += 1
        fuzzed.refusals.append(value)
        message = str(refusal)
        if "\n" in message or len(message) > LINE:
            fuzzed.wrong.append(
                f"{value!r:.200}: a message of {len(message)} characters, {message.count(chr(10))} breaks"
            )
        if refusal.names and not any(name in message for name in refusal.names):
            fuzzed.wrong.append(f"{value!r:.200}: {message[:300]!r} names none of {list(refusal.names)[:5]}")
    except Exception as error:
        fuzzed.tracebacks += 1
        (*_, last) = traceback.extract_tb(error.__traceback__)
        fuzzed.wrong.append(
            f"{value!r:.300}: {type(error).__name__} in {last.filename}:{last.lineno}: {str(error)[:200]}"
        )
    seconds = _cpu_s() - started
    fuzzed.slowest_s = max(fuzzed.slowest_s, seconds)
    if seconds > LIMIT_S:
        fuzzed.wrong.append(f"{value!r:.200}: {seconds:.1f} s")


def _cpu_s() -> float:
    """Of this process and the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
