"""The finance sets from raw local records, with shots of our own. Their scores never stand in the paper's column."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from mora.data.sets import SETS
from mora.evaluate.choices import as_test_split
from mora.evaluate.records import (
    Record,
    Row,
    field_error,
    gold_text,
    object_field,
    object_list,
    raw_files,
    read,
    require_at_least,
    text,
    texts,
)

SENTIMENTS = ["negative", "neutral", "positive"]
NEUTRAL_BELOW = 0.1  # ours: FiQA gives scores in [-1, 1], and the limits between the labels are not published
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
    """Load FPB. The test is a fifth of the distinct sentences, chosen by hash; each comes after five of the others."""
    files = raw_files(SETS["fpb"], data_dir)
    labels: dict[str, str] = {}
    for record in read(SETS["fpb"], files):
        if record.row["label"] not in SENTIMENTS:
            raise field_error(record, "label", f"one of {', '.join(SENTIMENTS)}")
        labels.setdefault(text(record, "news"), record.row["label"])
    ask = "{}\nQuestion: what is the sentiment?\nAnswer:".format
    questions = [(ask(news), label) for news, label in labels.items() if _is_test(news)]
    shots = [(ask(news), label) for news, label in labels.items() if not _is_test(news)]
    return _choice_docs(questions, shots, SENTIMENTS, 5, files[0])


def load_fiqa_sa(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    test, train = (raw_files(SETS["fiqa_sa"], data_dir, split) for split in ("test", "train"))
    return _choice_docs(_fiqa(test), _fiqa(train), SENTIMENTS, 5, train[0].parent)


def load_headline(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load seven questions per headline: the public columns do not separate past and future prices from other events."""
    files = raw_files(SETS["headline"], data_dir)
    by_news = {text(record, "News"): record for record in read(SETS["headline"], files, *QUESTIONS)}
    train = [record for news, record in by_news.items() if not _is_test(news)]
    require_at_least(train, 5, str(files[0]))
    docs = []
    for news, record in by_news.items():
        if not _is_test(news):
            continue
        for column, question in QUESTIONS.items():
            shots = random.Random(news + column).sample(train, 5)
            shown = "".join(f"{_headline(s.row, question)} {_yes(s, column)}\n\n" for s in shots)
            prompt, gold = shown + _headline(record.row, question), ["No", "Yes"].index(_yes(record, column))
            docs.append({"prompt": prompt, "options": ["No", "Yes"], "gold": gold, "group": column, "cluster": news})
    return as_test_split(docs)


def load_ner(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load FIN3's sentences that name a person, organisation or location, each after twenty of FIN5's."""
    files = raw_files(SETS["ner"], data_dir, "train")
    train = [(s, answer) for s, answer in _named_entities(files) if len(s.split()) <= SHOT_WORDS]
    require_at_least(train, 20, str(files[0]))
    docs = []
    for sentence, answer in _named_entities(raw_files(SETS["ner"], data_dir)):
        shots = random.Random(sentence).sample(train, 20)
        shown = "".join(f"{s}\nExtract named entity: {a}\n\n" for s, a in shots)
        docs.append({"prompt": f"{shown}{sentence}\nExtract named entity:", "answer": answer})
    return as_test_split(docs)


def load_convfinqa(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load every turn of the dev conversations, after the earlier turns with gold answers. A conversation is a cluster."""
    docs = []
    for record in read(SETS["convfinqa"], raw_files(SETS["convfinqa"], data_dir)):
        doc, columns = object_field(record, "doc"), object_field(object_field(record, "doc"), "table")
        table = "\n".join(
            f"{column}: " + "; ".join(f"{k} {v}" for k, v in object_field(columns, column).row.items())
            for column in columns.row
        )
        prompt = f"{text(doc, 'pre_text', empty=True)}\n{table}\n{text(doc, 'post_text', empty=True)}\n"
        for question, gold in _turns(object_field(record, "dialogue")):
            prompt += f"Question: {question}\nAnswer:"
            docs.append({"prompt": prompt, "answer": gold, "cluster": text(record, "id")})
            prompt += f" {gold}\n"
    return as_test_split(docs)


def _turns(talk: Record) -> list[tuple[str, str]]:
    """Return the questions with their answers."""
    questions, given = texts(talk, "conv_questions"), talk.row.get("executed_answers")
    answers = [gold_text(value) for value in given] if isinstance(given, list) else []
    if len(answers) != len(questions) or None in answers:
        raise field_error(talk, "executed_answers", f"a text or number for each of the {len(questions)} conv_questions")
    return [(question, str(answer)) for question, answer in zip(questions, answers, strict=True)]


def _choice_docs(
    questions: list[tuple[str, str]], shots: list[tuple[str, str]], options: list[str], k: int, where: Path
) -> dict[str, datasets.Dataset]:
    """Return the questions as documents, each after `k` shots, which a generator seeded by the question draws."""
    require_at_least(shots, k, str(where))
    docs: list[Row] = []
    for question, label in questions:
        drawn = random.Random(question).sample(shots, k)
        prompt = "".join(f"{t} {shown}\n\n" for t, shown in drawn) + question
        docs.append({"prompt": prompt, "options": options, "gold": options.index(label)})
    return as_test_split(docs)


def _fiqa(files: list[Path]) -> list[tuple[str, str]]:
    """Return, for each opinion, a question about it and its label."""
    pairs = []
    for record in read(SETS["fiqa_sa"], files):
        sentence = text(record, "sentence")
        for info in object_list(record, "info"):
            value, target = _sentiment(info), text(info, "target")
            label = "neutral" if abs(value) < NEUTRAL_BELOW else "positive" if value > 0 else "negative"
            pairs.append((f"{sentence}\nQuestion: what is the sentiment on {target}?\nAnswer:", label))
    return pairs


def _sentiment(info: Record) -> float:
    try:
        value = float(info.row["sentiment_score"])
    except (KeyError, TypeError, ValueError):
        value = math.nan
    if not abs(value) <= 1:
        raise field_error(info, "sentiment_score", "a number from -1 to 1")
    return value


def _named_entities(files: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield the sentences with an entity other than MISC, each with `name (type), ...`."""
    for record in read(SETS["ner"], files):
        names: list[tuple[list[str], str]] = []
        last = "O"
        for word, tag in zip(record.row["words"], record.row["tags"], strict=True):
            prefix, _, kind = tag.partition("-")
            if kind in KINDS and (prefix == "B" or kind != last):
                names.append(([word], KINDS[kind]))
            elif kind in KINDS:
                names[-1][0].append(word)
            last = kind or "O"
        if names:
            yield record.row["text"], ", ".join(f"{' '.join(name)} ({kind})" for name, kind in names)


def _headline(row: Row, question: str) -> str:
    return f'Headline: "{row["News"]}" Now answer this question: {question}'


def _yes(record: Record, column: str) -> str:
    value = text(record, column, empty=True).strip()
    if column == "Price Sentiment":
        return "No" if value in ("none", "") else "Yes"
    if value not in ("0", "1"):
        raise field_error(record, column, "0 or 1")
    return ["No", "Yes"][int(value)]


def _is_test(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % 5 == 0
