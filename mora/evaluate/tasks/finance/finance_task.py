"""The five finance sets: AdaptLLM's filled prompts, and how each is scored. Raw local records: finance_local.py."""

from __future__ import annotations

import re
from typing import Any

import datasets

from mora.evaluate.choices import as_test_split
from mora.evaluate.records import Row, Source, rows

NUMBER = re.compile(r"-?\d[\d,]*\.?\d*%?|-?\.\d+%?")
ENTITY = re.compile(r"([^,()]*)\(([^()]*)\)")
TOLERANCE = 1e-2  # AdaptLLM's, absolute


def load_choice(name: str, data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    found = rows(_source(name, ("input", "options", "gold_index")), data_dir)
    return as_test_split([{"prompt": r["input"], "options": r["options"], "gold": r["gold_index"]} for r in found])


def load_headline(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """`group` is the question's kind; the nine questions of a headline are one cluster."""
    found = rows(_source("Headline", ("input", "options", "gold_index", "class_id")), data_dir)
    docs = []
    for row in found:
        doc = {"prompt": row["input"], "options": row["options"], "gold": row["gold_index"]}
        headline = re.findall(r'Headline: "?(.*?)"?(?: Now answer|\n|$)', row["input"])
        docs.append({**doc, "group": str(row["class_id"]), "cluster": headline[-1] if headline else row["input"]})
    return as_test_split(docs)


def load_generation(name: str, data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    found = rows(_source(name, ("input", "label")), data_dir)
    return as_test_split([{"prompt": r["input"], "answer": str(r["label"])} for r in found])


def score_convfinqa(doc: Row, results: list[str]) -> dict[str, float]:
    """`score`: any number of the first line is within 0.01 of the gold one; `close`: within 1 % of it."""
    gold = numbers(doc["answer"])
    said = numbers(results[0].strip().split("\n")[0])
    if not gold:  # a yes or no question
        same = float(results[0].strip().lower().startswith(doc["answer"].strip().lower()))
        return {"score": same, "close": same}
    return {
        "score": float(any(abs(n - gold[0]) <= TOLERANCE for n in said)),
        "close": float(any(abs(n - gold[0]) <= 0.01 * abs(gold[0]) for n in said)),
    }


def score_ner(doc: Row, results: list[str]) -> dict[str, float]:
    """`score`: AdaptLLM's F1 of an example, half a credit each for text and type; `strict_f1`: both must agree."""
    gold, said = entities(doc["answer"]), entities(results[0].strip().split("\n")[0])
    waiting, credit = list(said), 0.0
    for text, kind in gold:
        match = next((e for e in waiting if e[0] == text or e[1] == kind), None)
        if match is not None:
            waiting.remove(match)
            credit += 0.5 * (match[0] == text) + 0.5 * (match[1] == kind)
    strict, left = 0, list(said)
    for entity in gold:
        if entity in left:
            left.remove(entity)
            strict += 1
    return {"score": _f1(credit, len(said), len(gold)), "strict_f1": _f1(strict, len(said), len(gold))}


def numbers(text: str) -> list[float]:
    """Numbers in order; `12%` is 0.12, thousands' commas are dropped."""
    found = []
    for match in NUMBER.findall(text):
        value = float(match.rstrip("%").replace(",", ""))
        found.append(value / 100 if match.endswith("%") else value)
    return found


def entities(text: str) -> list[tuple[str, str]]:
    """(last word, type) of each `name (type)`: AdaptLLM's parser takes the last word only."""
    pairs = [(name.split(), kind.strip().lower()) for name, kind in ENTITY.findall(text)]
    return [(words[-1], kind) for words, kind in pairs if words]


def _f1(hits: float, said: int, gold: int) -> float:
    return 2 * hits / (said + gold) if said + gold else 0.0


def _source(name: str, fields: tuple[str, ...]) -> Source:
    return Source(f"adaptllm/{name}.jsonl", fields, "AdaptLLM/finance-tasks", name)
