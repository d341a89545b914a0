"""What is wrong with something that the user gave. A command ends with such an error's one line and no traceback."""

from __future__ import annotations


class MoraError(ValueError):
    """The base of all of them. The message is one line: field or file, value, what was expected and what to do."""


class ConfigError(MoraError):
    """A configuration, or a command line, that cannot be run."""


class DataError(MoraError):
    """Training or evaluation data that cannot be used."""


class MissingData(DataError):
    """Data that are not on this machine and cannot be fetched."""


class ModelError(MoraError):
    """Weights, a tokenizer or an adapter that cannot be fetched or loaded, or do not fit together."""


class DamagedFileError(MoraError):
    """A file that this suite wrote and that cannot be read any more, or belongs to something else."""


class NonFiniteError(MoraError):
    """Numbers of a model that are NaN or infinite: its answers mean nothing. The message names task and document."""


def one_line(error: object) -> str:
    """Return the text of `error` with every run of white space as one blank."""
    return " ".join(str(error).split())


def short(text: str, max_length: int = 100) -> str:
    """Return the text, without the middle of a long one."""
    return text if len(text) <= max_length else f"{text[: max_length * 2 // 3]} ... {text[-max_length // 4 :]}"
