"""The finance sets from raw local records, with shots of our own filling: never in the paper's column."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from mora.data.files import read_json, read_rows, read_text
from mora.evaluate.choices import as_test_split
from mora.evaluate.records import DataError, Row, check, raw_folder

SENTIMENTS = ["negative", "neutral", "positive"]
NEUTRAL_BELOW = 0.1  # ours: FiQA gives scores in [-1, 1], the labels' borders are not published
KINDS = {"PER": "person", "ORG": "organization", "LOC": "location"}
SHOT_WORDS = 50  # ours: 20 longer sentences would not fit beside the question
QUESTIONS = {
    "Price Direction Up": "Does the news headline talk about price going up?",
    "Price Direction Constant": "Does the news headline talk about price staying constant?",
    "Price Direction Down": "Does the news headline talk about price going down?",
    "Asset Comparision": "Does the news headline compare gold with another asset?",
    "Past Information": "Does the news headline talk about the past?",
    "Future Information": "Does the news headline talk about the future?",
    "Price Sentiment": "Does the news headline talk about price?",
}


def load_fpb(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """A fifth of the distinct sentences, by hash, is the test; five others before each."""
    path = raw_folder(data_dir) / "fpb/all-data.csv"
    labels: dict[str, str] = {}
    for record in read_rows(path, encoding="latin-1"):
        row = record.row
        if row.get("label") not in SENTIMENTS or not row.get("news"):
            raise DataError(f"{record.where}: expected label (one of {SENTIMENTS}) and news, got {row}")
        labels.setdefault(row["news"], row["label"])
    ask = "{}\nQuestion: what is the sentiment?\nAnswer:".format
    asked = [(ask(news), label) for news, label in labels.items() if _is_test(news)]
    shots = [(ask(news), label) for news, label in labels.items() if not _is_test(news)]
    return _choice_docs(asked, shots, SENTIMENTS, 5)


def load_fiqa_sa(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    folder = raw_folder(data_dir) / "fiqa_sa"
    return _choice_docs(_fiqa(folder, "test"), _fiqa(folder, "train"), SENTIMENTS, 5)


def load_headline(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Seven questions a headline: the public columns do not separate past and future prices from other events."""
    path = raw_folder(data_dir) / "headline/gold-dataset-sinha-khandait.csv"
    records = read_rows(path, delimiter="\t")
    found = {row["News"]: row for row in check(records, ("News", *QUESTIONS), str(path))}
    train = [row for news, row in found.items() if not _is_test(news)]
    docs = []
    for news, row in found.items():
        if not _is_test(news):
            continue
        for column, question in QUESTIONS.items():
            shots = random.Random(news + column).sample(train, 5)
            text = "".join(f"{_headline(s, question)} {_yes(s, column)}\n\n" for s in shots) + _headline(row, question)
            gold = ["No", "Yes"].index(_yes(row, column))
            docs.append({"prompt": text, "options": ["No", "Yes"], "gold": gold, "group": column, "cluster": news})
    return as_test_split(docs)


def load_ner(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """FIN3's sentences with a person, organisation or location, twenty of FIN5's before each."""
    folder = raw_folder(data_dir) / "fin_ner"
    train = [s for s in _conll(folder / "FIN5_train.conll") if len(s[0].split()) <= SHOT_WORDS]
    docs = []
    for sentence, answer in _conll(folder / "FIN3_test.conll"):
        shots = random.Random(sentence).sample(train, 20)
        text = "".join(f"{s}\nExtract named entity: {a}\n\n" for s, a in shots)
        docs.append({"prompt": f"{text}{sentence}\nExtract named entity:", "answer": answer})
    return as_test_split(docs)


def load_convfinqa(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Every turn of the dev conversations, earlier turns with their gold answers; a conversation is a cluster."""
    path = raw_folder(data_dir) / "convfinqa/dev.json"
    docs = []
    for number, row in enumerate(read_json(path)["dev"], 1):
        if not {"id", "doc", "dialogue"} <= set(row):
            raise DataError(f"{path}: row {number}: expected id, doc and dialogue, got {', '.join(row)}")
        doc, talk = row["doc"], row["dialogue"]
        table = "\n".join(
            f"{column}: " + "; ".join(f"{k} {v}" for k, v in cells.items()) for column, cells in doc["table"].items()
        )
        text = f"{doc['pre_text']}\n{table}\n{doc['post_text']}\n"
        for question, answer in zip(talk["conv_questions"], talk["executed_answers"], strict=True):
            text += f"Question: {question}\nAnswer:"
            docs.append({"prompt": text, "answer": str(answer), "cluster": row["id"]})
            text += f" {answer}\n"
    return as_test_split(docs)


def _choice_docs(
    asked: list[tuple[str, str]], shots: list[tuple[str, str]], options: list[str], k: int
) -> dict[str, datasets.Dataset]:
    """`k` shots, drawn anew for each question by a generator that the question seeds."""
    docs: list[Row] = []
    for text, label in asked:
        drawn = random.Random(text).sample(shots, k)
        prompt = "".join(f"{t} {answer}\n\n" for t, answer in drawn) + text
        docs.append({"prompt": prompt, "options": options, "gold": options.index(label)})
    return as_test_split(docs)


def _fiqa(folder: Path, split: str) -> list[tuple[str, str]]:
    found = []
    for kind in ("headline", "post"):
        path = folder / f"task1_{kind}_ABSA_{split}.json"
        for key, row in read_json(path).items():
            for info in row["info"]:
                if not {"target", "sentiment_score"} <= set(info):
                    raise DataError(f"{path}: {key}: expected target and sentiment_score, got {', '.join(info)}")
                value = float(info["sentiment_score"])
                label = "neutral" if abs(value) < NEUTRAL_BELOW else "positive" if value > 0 else "negative"
                question = f"{row['sentence']}\nQuestion: what is the sentiment on {info['target']}?\nAnswer:"
                found.append((question, label))
    return found


def _conll(path: Path) -> Iterator[tuple[str, str]]:
    """(sentence, `name (type), ...`) of the sentences with an entity other than MISC."""
    for block in re.split(r"\n\s*\n", read_text(path).replace("\r\n", "\n")):
        words: list[str] = []
        names: list[tuple[list[str], str]] = []
        last = "O"
        for line in block.splitlines():
            columns = line.split()
            if len(columns) < 2 or columns[0] == "-DOCSTART-":
                continue
            words.append(columns[0])
            prefix, _, kind = columns[-1].partition("-")
            if kind in KINDS and (prefix == "B" or kind != last):
                names.append(([columns[0]], KINDS[kind]))
            elif kind in KINDS:
                names[-1][0].append(columns[0])
            last = kind or "O"
        if names:
            yield " ".join(words), ", ".join(f"{' '.join(name)} ({kind})" for name, kind in names)


def _headline(row: Row, question: str) -> str:
    return f'Headline: "{row["News"]}" Now answer this question: {question}'


def _yes(row: Row, column: str) -> str:
    value = row[column].strip()
    return "Yes" if value == "1" or (column == "Price Sentiment" and value not in ("none", "")) else "No"


def _is_test(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % 5 == 0
