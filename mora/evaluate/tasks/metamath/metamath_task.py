"""GSM8K and MATH as MetaMath scores them: its prompt, its stop words, its reading of the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import datasets
from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

from mora.data import metamath
from mora.data.records import conversation
from mora.data.sets import SETS
from mora.errors import DataError
from mora.evaluate.choices import as_test_split
from mora.evaluate.records import Record, Row, field_error, rows, text

PROMPT = metamath.PROMPT + " Let's think step by step."  # official: training ends at the colon
MARKER = "The answer is: "
NUMBER = re.compile(r"[\-+]?\d*[.,/]?\d+")
GOLD = re.compile(r"-?[0-9]+")


def load_gsm8k(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    docs = []
    for record in rows(SETS["gsm8k"], data_dir):
        gold = text(record, "answer").rpartition("#### ")[2].replace(",", "").strip()
        if not GOLD.fullmatch(gold):
            raise field_error(record, "answer", "a text that ends in '#### ' and a whole number")
        docs.append(_doc(text(record, "question"), gold))
    return as_test_split(docs)


def load_math(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load the 5,000 problems from one file, or from the hub's seven subjects."""
    return as_test_split([_math_doc(record) for record in rows(SETS["math"], data_dir)])


def load_math500(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    return as_test_split([_math_doc(record) for record in rows(SETS["math500"], data_dir)])


def load_gsm8k_gold(data_dir: str | None = None, **known: Any) -> dict[str, datasets.Dataset]:
    return as_test_split(_gold_docs(rows(SETS["gsm8k"], data_dir), "gsm8k", **known))


def load_math_gold(data_dir: str | None = None, **known: Any) -> dict[str, datasets.Dataset]:
    """Load the gold answers of all 5,000 problems."""
    return as_test_split(_gold_docs(rows(SETS["math"], data_dir), "math", **known))


def _gold_docs(
    records: Iterable[Record], format: str, tokenizer: Any = None, max_length: int = 2048, **_: Any
) -> list[Row]:
    """Return prompts and answers as in a training row of `format`, without those longer than `max_length` tokens.

    Raises:
        DataError: All are longer.
    """
    docs: list[Row] = []
    for record in records:
        question, answer = conversation(record, format).turns
        docs.append({"prompt": metamath.prompt_of(question[1]), "answer": answer[1]})
    if tokenizer is None:
        return docs
    ids = tokenizer([doc["prompt"] + doc["answer"] for doc in docs])["input_ids"]
    kept = [doc for doc, own in zip(docs, ids, strict=True) if len(own) <= max_length]
    if docs and not kept:
        shortest = min(map(len, ids))
        raise DataError(
            f"max_length={max_length}: none of the {len(docs)} questions fits with its answer, expected at least {shortest} "
            "tokens: raise --max-length, or leave the task out if the model has no more positions"
        )
    return kept


def score_gold(doc: Row, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Score the gold answer: `score` is its nats per token, `nats` the sum.

    With a plain HFLM, which gives no token counts, both are the sum.
    """
    value, _ = results[0]
    return {"score": -value / getattr(value, "n_tokens", 1), "nats": -float(value)}


def score_gsm8k(doc: Row, results: list[str]) -> dict[str, float]:
    """Score a text: `score` if the rounded number after the last marker is the gold integer, `answered` if there is one."""
    answer = gsm8k_answer(results[0])
    return {"score": float(answer == int(doc["answer"])), "answered": float(MARKER in results[0])}


def score_math(doc: Row, results: list[str]) -> dict[str, float]:
    answer = math_answer(results[0])
    right = answer is not None and is_equiv(answer, doc["answer"])
    return {"score": float(right), "answered": float(MARKER in results[0])}


def gsm8k_answer(text: str) -> int | None:
    """Return the answer as MetaMath's code reads it, including its flaws.

    A fraction is divided, `1/0` is 1, and `1,234,567` is 1234. Without a marker there is no answer.
    """
    _, marker, after = text.rpartition(MARKER)
    match = NUMBER.search(after) if marker else None
    if match is None:
        return None
    number = match.group().replace(",", "").removesuffix("/0")
    try:
        return round(float(Fraction(number)))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def math_answer(text: str) -> str | None:
    """Return what follows the last marker, up to a full stop at a line's end, without one more full stop at its own end."""
    _, marker, after = text.rpartition(MARKER)
    return after.split(".\n")[0].strip().removesuffix(".").strip() if marker else None


def _math_doc(record: Record) -> Row:
    """Return a problem as a document. The functions of lm-eval and MetaMath both find `\\fbox`, but cannot remove it."""
    boxed = (last_boxed_only_string(text(record, "solution")) or "").replace("\\fbox{", "\\boxed{", 1)
    answer = remove_boxed(boxed) if boxed.startswith(("\\boxed{", "\\boxed ")) else ""
    if not answer.strip():
        raise field_error(record, "solution", "a text with its answer in \\boxed{...}")
    return _doc(text(record, "problem"), answer)


def _doc(question: str, answer: str) -> Row:
    return {"prompt": PROMPT.format(instruction=question), "answer": answer}
