"""Evaluation files in the public sets' schemas, made of sums and made-up sentences: scale smoke tests the path with them."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

ROWS = 4
CHOICES = ("PubMedQA", "USMLE", "RCT", "FPB", "FiQA_SA", "Headline")  # AdaptLLM's sets with options


def write(folder: Path) -> Path:
    """Write every file that the paper's tasks read, with a few rows that are always the same; return the folder."""
    rng = random.Random(0)
    for name in CHOICES:
        _jsonl(folder / f"adaptllm/{name}.jsonl", [_choice(rng, i) for i in range(ROWS)])
    entity = {"input": "Which entities? The bank of Lund grew. Answer:", "label": "Lund (location)"}
    _jsonl(folder / "adaptllm/NER.jsonl", [entity] * ROWS)
    _jsonl(folder / "adaptllm/ConvFinQA.jsonl", [_sum(rng, "input", "label") for _ in range(ROWS)])
    _jsonl(folder / "gsm8k/test.jsonl", [_sum(rng, "question", "answer", "#### {}") for _ in range(ROWS)])
    for name in ("math/test.jsonl", "math/math500_test.jsonl"):
        _jsonl(folder / name, [_sum(rng, "problem", "solution", "It is $\\boxed{{{}}}$.") for _ in range(ROWS)])
    for split, rows in (("dev", 5), ("test", ROWS)):
        for subject in ("anatomy", "astronomy"):
            path = folder / "mmlu" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", newline="") as file:
                csv.writer(file).writerows([f"Which is {n}?", "0", "1", "2", "3", "ABCD"[n % 4]] for n in range(rows))
    text = " ".join(f"Then {rng.choice(['one', 'two', 'many'])} of them came." for _ in range(60))
    _jsonl(folder / "c4/validation.jsonl", [{"text": text}] * ROWS)
    return folder


def _choice(rng: random.Random, number: int) -> dict[str, Any]:
    headline = f'Headline: "gold {rng.choice(["up", "down"])} {number}" Now answer: did it rise?'
    return {
        "id": number,
        "input": headline,
        "options": ["Yes", "No"],
        "gold_index": rng.randrange(2),
        "class_id": number % 2,
    }


def _sum(rng: random.Random, question: str, answer: str, form: str = "{}") -> dict[str, str]:
    a, b = rng.randrange(10), rng.randrange(10)
    return {question: f"What is {a} + {b}?", answer: form.format(a + b)}


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
