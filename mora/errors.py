"""Errors that a user can fix. A command that meets one ends with its message, which is one line, and without a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import ParamSpec

Arguments = ParamSpec("Arguments")


class MoraError(ValueError):
    """The base class of these errors. The message is one line: field or file, value, what was expected and what to do."""


class ConfigError(MoraError):
    """A configuration, or a command line, that cannot be run."""


class DataError(MoraError):
    """Training or evaluation data that cannot be used."""


class MissingData(DataError):
    """Data that are not on this machine and cannot be fetched."""


class ModelError(MoraError):
    """Weights, a tokenizer or an adapter that cannot be fetched or loaded, or do not fit together."""


class DamagedFileError(MoraError):
    """A file that this suite wrote, and that can no longer be read or belongs to something else."""


class NonFiniteError(MoraError):
    """Numbers of a model that are NaN or infinite, so that its answers mean nothing. The message names task and document."""


def ends_in_one_line(
    program: str, *also: type[Exception], stopped: str = "stopped"
) -> Callable[[Callable[Arguments, int]], Callable[Arguments, int]]:
    """Decorate the main function of a command, which returns its exit code.

    MoraError, OSError and `also` end it with one line and exit code 2, Ctrl-C with the line `stopped` and 130.
    """

    expected: tuple[type[Exception], ...] = (MoraError, OSError, *also)

    def decorate(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
        @functools.wraps(main)
        def ending(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except expected as error:
                print(f"{program}: {one_line(error)}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"{program}: {stopped}", file=sys.stderr)
                return 130

        return ending

    return decorate


def one_line(error: object) -> str:
    """Return the text of `error` with every run of white space replaced by one blank."""
    return " ".join(str(error).split())


def short(text: str, max_length: int = 100) -> str:
    """Return the text in one line; if it is too long, its middle is left out."""
    text = one_line(text)
    return text if len(text) <= max_length else f"{text[: max_length * 2 // 3]} ... {text[-max_length // 4 :]}"


def nearest(wanted: str, known: Iterable[str]) -> str | None:
    """Return the known name that `wanted`, in whatever case, may stand for; None if none is near.

    It is the shortest name that begins with `wanted`, else the most similar one.
    """
    names = {name.lower(): name for name in known}
    begun = [name for name in names if len(wanted) > 1 and name.startswith(wanted.lower())]
    similar = get_close_matches(wanted.lower(), names, 1, 0.65)  # at difflib's 0.6, `cosine` is near `none`
    return next((names[name] for name in [*sorted(begun, key=len), *similar]), None)


def did_you_mean(name: str | None) -> str:
    """Return `; did you mean NAME?`, for the end of a message; empty without a name."""
    return f"; did you mean {name}?" if name else ""
