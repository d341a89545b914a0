"""MMLU in the form of open-instruct's evaluation: its subjects, shots and chat wrapper."""

from __future__ import annotations

import functools
from typing import Any

import datasets

from mora.data import tokens
from mora.data.sets import LETTERS, SETS, subject_of
from mora.evaluate.choices import as_test_split
from mora.evaluate.records import Record, Row, data_folder, field_error, read, require_at_least, rows, text, texts

# Joining two texts may add tokens to those of both, but far fewer than this.
AT_THE_SEAM = 32

# The medical subjects of MultiMedQA; the paper does not say which it took.
BIO = [
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
]


def load(
    shots: int,
    chat: bool,
    subjects: str = "all",
    data_dir: str | None = None,
    tokenizer: Any = None,
    max_length: int = 2048,
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """Load every question with its prompt. As long as a prompt has more than `max_length` tokens, a shot is dropped."""
    chosen = BIO if subjects == "bio" else None
    dev: dict[str, list[Row]] = {}
    for row in _rows("dev", data_dir, chosen) if shots else []:
        dev.setdefault(row["subject"], []).append(row)

    @functools.cache
    def head_tokens(subject: str, n: int) -> int:
        return len(tokens.encode(tokenizer, _head(subject, dev.get(subject, [])[:n], chat)))

    def fits(shown: str, row: Row, n: int) -> bool:
        """Return whether the prompt fits.

        The bytes of the question bound its tokens. If that does not decide it, the question is tokenised alone; if that does
        not either, the whole prompt.
        """
        if tokenizer is None:
            return True
        room = max_length - head_tokens(row["subject"], n)
        tail = _tail(row, chat)
        surely = len(tail.encode()) < room or len(tokens.encode(tokenizer, tail)) + AT_THE_SEAM < room
        return surely or len(tokens.encode(tokenizer, shown)) <= max_length

    docs = []
    for row in _rows("test", data_dir, chosen):
        subject = row["subject"]
        require_at_least(dev.get(subject, []), shots, f"mmlu/dev, subject {subject!r}")
        for n in range(shots, -1, -1):
            shown = prompt(row, dev.get(subject, [])[:n], chat)
            if n == 0 or fits(shown, row, n):
                break
        docs.append({"prompt": shown, "options": LETTERS, "gold": row["answer"], "group": subject})
    return as_test_split(docs)


def prompt(row: Row, shots: list[Row], chat: bool) -> str:
    return _head(row["subject"], shots, chat) + _tail(row, chat)


def _head(subject: str, shots: list[Row], chat: bool) -> str:
    """Return the header, with open-instruct's two spaces before the subject, and the shots, of which there may be none."""
    text = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"
    text += "".join(f"{question(shot)} {LETTERS[shot['answer']]}\n\n" for shot in shots)
    return f"<|user|>\n{text}" if chat else text


def _tail(row: Row, chat: bool) -> str:
    return f"{question(row)}\n<|assistant|>\nThe answer is:" if chat else question(row)


def question(row: Row) -> str:
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question']}{options}\nAnswer:"


def _rows(split: str, data_dir: str | None, subjects: list[str] | None) -> list[Row]:
    """Read a split, of these subjects alone if any are given. Files of other subjects are not opened."""
    source = SETS["mmlu"]
    files = source.local(split, data_folder(data_dir))
    wanted = [path for path in files if subjects is None or path.suffix != ".csv" or subject_of(path) in subjects]
    records = read(source, wanted) if wanted else rows(source, data_dir, split)
    return [_checked(record) for record in records if subjects is None or record.row["subject"] in subjects]


def _checked(record: Record) -> Row:
    choices, answer = texts(record, "choices"), record.row["answer"]
    if len(choices) != len(LETTERS):
        raise field_error(record, "choices", "a list of four texts")
    if type(answer) is not int or answer not in range(len(LETTERS)):
        raise field_error(record, "answer", "the index of the right choice, 0 to 3")
    return {
        "question": text(record, "question"),
        "subject": text(record, "subject"),
        "choices": choices,
        "answer": answer,
    }
