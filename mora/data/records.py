"""Rows of the known formats, checked. If a row is wrong, the error names file, line and field."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mora.errors import DataError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Record:
    """A row as it was read. `where` is its file and line, or its file and row number."""

    where: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Turns as (role, content). MetaMath's rows are one user turn (the query) and one assistant turn (the response).

    `origin` is the original question, which the row may rephrase, if its format gives that.
    """

    turns: list[tuple[str, str]]
    origin: str = ""

    @property
    def question(self) -> str:
        """Return what the user says, which is the part that is compared with evaluation sets."""
        return "\n".join(content for role, content in self.turns if role == "user")

    @property
    def family(self) -> int:
        """Return 64 bits that are equal for rows of the same origin: if one of these is held out, no other is trained on."""
        text = " ".join((self.origin or "\n".join(content for _, content in self.turns)).split())
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)


@dataclass(frozen=True)
class Document:
    """A plain text. If it has more than one line, the first is its title."""

    text: str

    @property
    def question(self) -> str:
        """Return the part that is compared with evaluation sets, which is the whole text."""
        return self.text


def parse(record: Record, format: str) -> Conversation | Document:
    """Return a row in the form that its recipe needs. Raises DataError if a field is missing or wrong."""
    return _PARSERS[format](record)


def conversation(record: Record, format: str) -> Conversation:
    """Return a row as a conversation.

    Raises:
        DataError: A field is missing or wrong.
        TypeError: The format is one of plain text.
    """
    parsed = parse(record, format)
    if not isinstance(parsed, Conversation):
        raise DataError(f"format={format!r} holds plain text, this task needs questions and answers")
    return parsed


def document(record: Record, format: str) -> Document:
    """Return a row as a document. Raises DataError if a field is wrong, or the format is one of conversations."""
    parsed = parse(record, format)
    if not isinstance(parsed, Document):
        raise DataError(f"format={format!r} holds questions and answers, this task needs plain text: format=text")
    return parsed


def field_error(record: Record, field: str, expected: str) -> DataError:
    """Return the error to raise if a field is missing or of the wrong kind."""
    state = f"is {record.row[field]!r:.60}" if field in record.row else "is missing"
    return DataError(f"{record.where}: field {field!r} {state}, expected {expected}; the row has {field_names(record)}")


def field_names(record: Record) -> str:
    """Return the names of a row's fields, in one line."""
    return f"{' '.join(', '.join(sorted(map(str, record.row))).split()):.200}"


def _string(record: Record, field: str, empty: bool = False) -> str:
    value = record.row.get(field)
    if not isinstance(value, str):
        raise field_error(record, field, "a text")
    if not empty and not value.strip():
        raise DataError(f"{record.where}: field {field!r} is empty")
    return value


def _list(record: Record, field: str) -> list[Any]:
    value = record.row.get(field)
    if not isinstance(value, list) or not value:
        raise DataError(f"{record.where}: field {field!r} is {value!r:.60}, expected a list that is not empty")
    return value


def _answered(record: Record, field: str, turns: list[tuple[str, str]]) -> Conversation:
    if not any(role == "assistant" for role, _ in turns):
        raise DataError(f"{record.where}: field {field!r} has no assistant turn, so no token to train on")
    return Conversation(turns)


def _messages(record: Record) -> Conversation:
    turns = []
    for i, message in enumerate(_list(record, "messages")):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(message.get("content"), str):
            raise DataError(
                f"{record.where}: field 'messages[{i}]' is {message!r:.60}, expected a content and a role of {ROLES}"
            )
        turns.append((role, message["content"]))
    return _answered(record, "messages", turns)


def _instruction(record: Record) -> Conversation:
    instruction, given = _string(record, "instruction"), _string(record, "input", empty=True)
    question = f"{instruction.strip()}\n\n{given.strip()}" if given.strip() else instruction
    return Conversation([("user", question), ("assistant", _string(record, "output"))])


def _lima(record: Record) -> Conversation:
    turns = []
    for i, text in enumerate(_list(record, "conversations")):
        if not isinstance(text, str):
            raise DataError(f"{record.where}: field 'conversations[{i}]' is {text!r:.60}, expected a text")
        turns.append((ROLES[1 + i % 2], text))
    return _answered(record, "conversations", turns)


def _sharegpt(record: Record) -> Conversation:
    roles = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
    turns = []
    for i, turn in enumerate(_list(record, "conversations")):
        role = roles.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise DataError(
                f"{record.where}: field 'conversations[{i}]' is {turn!r:.60}, expected a value and a from of {set(roles)}"
            )
        turns.append((role, turn["value"]))
    return _answered(record, "conversations", turns)


def _openorca(record: Record) -> Conversation:
    system = _string(record, "system_prompt", empty=True)
    first = [("system", system)] if system.strip() else []
    return Conversation([*first, ("user", _string(record, "question")), ("assistant", _string(record, "response"))])


def _metamath(record: Record) -> Conversation:
    query, origin = _string(record, "query"), record.row.get("original_question")
    turns = [("user", query), ("assistant", _string(record, "response"))]
    return Conversation(turns, origin if isinstance(origin, str) and origin.strip() else query)


def _gsm8k(record: Record) -> Conversation:
    """Return GSM8K's own answer in MetaMathQA's form: without calculator marks, and with the closing phrase."""
    answer = re.sub(r"<<[^<>]*>>", "", _string(record, "answer"))
    if "####" not in answer:
        raise DataError(f"{record.where}: field 'answer' has no '#### ' before its result")
    result = answer.rpartition("####")[2].strip()
    question = _string(record, "question")
    return Conversation([("user", question), ("assistant", f"{answer}\nThe answer is: {result}")], question)


def _math(record: Record) -> Conversation:
    """Return MATH's own solution in MetaMathQA's form: with the closing phrase."""
    solution = _string(record, "solution")
    result = _last_boxed(solution)
    if result is None:
        raise DataError(f"{record.where}: field 'solution' has no \\boxed{{}} result")
    problem = _string(record, "problem")
    return Conversation([("user", problem), ("assistant", f"{solution}\nThe answer is: {result}")], problem)


def _last_boxed(solution: str) -> str | None:
    """Return what stands in the last \\boxed{...} or \\fbox{...}, or after `\\boxed `; None if there is none."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return None
    rest = solution[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if not rest.startswith("{"):
        return rest.split("$")[0].strip() or None
    depth = 0
    for i, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:i]
    return None


def _text(record: Record) -> Document:
    """Return `text`; a separate `title`, if the row has one, becomes the first line."""
    text, title = _string(record, "text"), record.row.get("title")
    if isinstance(title, str) and title.strip():
        text = f"{title.strip()}\n{text}"
    return Document(text)


_PARSERS: dict[str, Callable[[Record], Conversation | Document]] = {
    "messages": _messages,
    "instruction": _instruction,
    "lima": _lima,
    "sharegpt": _sharegpt,
    "openorca": _openorca,
    "metamath": _metamath,
    "gsm8k": _gsm8k,
    "math": _math,
    "text": _text,
}
