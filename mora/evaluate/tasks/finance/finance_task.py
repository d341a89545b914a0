"""The five finance sets with AdaptLLM's filled prompts, and how each is scored. finance_local.py reads raw local records."""

from __future__ import annotations

import re
from typing import Any

import datasets

from mora.data.sets import SETS
from mora.evaluate.choices import adaptllm_doc, as_test_split
from mora.evaluate.records import Record, Row, field_error, gold_text, rows, text

NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?%?")
ENTITY = re.compile(r"(\S+)\s+\((\S+)\)")
TOLERANCE = 1e-2  # AdaptLLM's; it is absolute


def load_choice(name: str, data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    records = rows(SETS[f"adaptllm_{name.lower()}"], data_dir)
    return as_test_split([adaptllm_doc(record) for record in records])


def load_headline(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load Headline. `group` is the question's kind; the nine questions of a headline are one cluster."""
    records = rows(SETS["adaptllm_headline"], data_dir)
    docs = []
    for record in records:
        doc, kind = adaptllm_doc(record), record.row["class_id"]
        if not isinstance(kind, (str, int)):
            raise field_error(record, "class_id", "the number or name of the question's kind")
        headline = re.findall(r'Headline: "?(.*?)"?(?: Now answer|\n|$)', doc["prompt"])
        docs.append({**doc, "group": str(kind), "cluster": headline[-1] if headline else doc["prompt"]})
    return as_test_split(docs)


def load_generation(name: str, data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    records = rows(SETS[f"adaptllm_{name.lower()}"], data_dir)
    return as_test_split([{"prompt": text(record, "input"), "answer": _label(record)} for record in records])


def _label(record: Record) -> str:
    """Return the gold label. Of a list of answers, the first counts."""
    label = record.row["label"]
    gold = gold_text(label[0] if isinstance(label, list) and label else label)
    if gold is None:
        raise field_error(record, "label", "a text or number, or a list of them")
    return gold


def score_convfinqa(doc: Row, results: list[str]) -> dict[str, float]:
    """Score the numbers in the first line.

    `score` says whether one of them is within 0.01 of the gold number, `close` whether one is within 1% of it. A yes or no
    can be right only for `close`, since AdaptLLM's rule knows only numbers.
    """
    gold = numbers(doc["answer"])
    predicted = numbers(results[0].strip().split("\n")[0])
    if not gold:
        return {"score": 0.0, "close": float(results[0].strip().lower().startswith(doc["answer"].strip().lower()))}
    return {
        "score": float(any(abs(n - gold[0]) <= TOLERANCE for n in predicted)),
        "close": float(any(abs(n - gold[0]) <= 0.01 * abs(gold[0]) for n in predicted)),
    }


def score_ner(doc: Row, results: list[str]) -> dict[str, float]:
    """Return the F1 of an example. `score` is that of the package nereval, which AdaptLLM calls with every name at 0.

    There each gold entity is matched with the first prediction of its text or its type, and each of the two gives half a
    credit. A prediction can be matched again: if two persons are both predicted, the second is matched with the first one's
    name and gets a half. For `strict_f1`, text and type must agree.
    """
    gold, predicted = entities(doc["answer"]), entities(results[0].strip().split("\n")[0])
    credit = 0.0
    for name, kind in gold:
        match = next((e for e in predicted if e[0] == name or e[1] == kind), None)
        if match is not None:
            credit += 0.5 * (match[0] == name) + 0.5 * (match[1] == kind)
    strict = len(set(gold) & set(predicted))
    return {"score": _f1(credit, len(predicted), len(gold)), "strict_f1": _f1(strict, len(predicted), len(gold))}


def numbers(text: str) -> list[float]:
    """Return the numbers in order. `12%` is 0.12, and thousands separators are dropped."""
    values = []
    for match in NUMBER.findall(text):
        digits = match.rstrip("%")
        values.append(float(digits.replace(",", "")) / (100 if match.endswith("%") else 1))
    return values


def entities(text: str) -> list[tuple[str, str]]:
    """Return (last word, type) for each `name (type)`, each pair once, as AdaptLLM's parser does."""
    return list(dict.fromkeys(ENTITY.findall(text)))


def _f1(hits: float, predicted: int, gold: int) -> float:
    return 2 * hits / (predicted + gold) if predicted + gold else 0.0
