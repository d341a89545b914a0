"""Training rows that hold a question of an evaluation set: found by shared runs of words, then dropped or only counted."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mora.config.schema import HubSource, Overlap

from . import sources
from .records import DataError

NGRAM = 13  # words in a row that are compared, as in GPT-3's check; a shorter question must be the whole text
SHARE = 0.5  # of a question's runs that the row must hold: phrases and drawings that many questions share do not count
SHORTEST = 5  # questions of fewer words are left out: anything would match them
NOT_COMPARED = "not compared: neither under MORA_DATA_DIR nor on a hub that answers"
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class HeldOutSet:
    """Where an evaluation set's questions are: a local glob under MORA_DATA_DIR, and files of a hub set."""

    local: str
    hub: str | None
    hub_files: str
    fields: tuple[str, ...]  # those of a hub row or JSON line that hold text


SETS = {
    "gsm8k": HeldOutSet("gsm8k/test.jsonl", "openai/gsm8k", "main/test*.parquet", ("question",)),
    "math": HeldOutSet("math/test.jsonl", "EleutherAI/hendrycks_math", "*/test*.parquet", ("problem",)),
    "mmlu": HeldOutSet("mmlu/test/*.csv", "cais/mmlu", "all/test*.parquet", ("question",)),
    "pubmedqa": HeldOutSet(
        "pubmedqa/ori_pqal.json", "qiaojin/PubMedQA", "pqa_labeled/*.parquet", ("question", "QUESTION", "CONTEXTS")
    ),
    "fpb": HeldOutSet("fpb/all-data.csv", None, "", ("news",)),
    "headline": HeldOutSet("headline/*.csv", None, "", ("News",)),
}


@dataclass
class Index:
    """Hashes of the evaluation sets' word sequences."""

    runs: dict[int, list[int]] = field(default_factory=dict)  # NGRAM words -> the questions that hold them
    sizes: list[tuple[int, str]] = field(default_factory=list)  # of each such question: runs, and its set
    whole: dict[int, str] = field(default_factory=dict)  # a short question -> set
    facts: dict[str, str] = field(default_factory=dict)  # set -> sha256 of its questions, or NOT_COMPARED

    @property
    def missing(self) -> list[str]:
        return [name for name, fact in self.facts.items() if fact == NOT_COMPARED]

    def add(self, name: str, questions: list[str]) -> None:
        for question in questions:
            words = _words(question)
            if len(words) >= NGRAM:
                distinct = set(_grams(words, NGRAM))
                for gram in distinct:
                    self.runs.setdefault(gram, []).append(len(self.sizes))
                self.sizes.append((len(distinct), name))
            elif len(words) >= SHORTEST:
                self.whole.update((gram, name) for gram in _grams(words, len(words)))
        self.facts[name] = hashlib.sha256("\n".join(questions).encode()).hexdigest()[:16]

    def find(self, text: str) -> str | None:
        """The set that `text` overlaps with: it holds half of a question, or is a short question and nothing else."""
        if not self.runs and not self.whole:
            return None
        words = _words(text)
        if len(words) < NGRAM:
            return next((self.whole[g] for g in _grams(words, len(words)) if g in self.whole), None)
        met = Counter(question for g in set(_grams(words, NGRAM)) for question in self.runs.get(g, ()))
        for question, shared in met.items():
            size, name = self.sizes[question]
            if shared >= SHARE * size:
                return name
        return None


def build(overlap: Overlap) -> Index:
    """The index of the named sets. A set that cannot be had is left out; `facts` then say so."""
    index = Index()
    for name in overlap.sets:
        try:
            index.add(name, questions_of(SETS[name]))
        except DataError:
            index.facts[name] = NOT_COMPARED
    return index


def questions_of(held_out: HeldOutSet) -> list[str]:
    """Raises: DataError where the set is neither under MORA_DATA_DIR nor on a hub that answers."""
    local = sources._match(held_out.local)
    if not local and held_out.hub is None:
        raise DataError(sources._missing(held_out.local))
    if not local:
        hub = HubSource(
            kind="hub", id=str(held_out.hub), files=held_out.hub_files, revision="main", format="text", max_rows=None
        )
        local, _ = sources.hub_files(hub)
    return [text for path in local for text in _questions(path, held_out.fields)]


def _questions(path: Path, fields: tuple[str, ...]) -> Iterator[str]:
    if path.suffix == ".csv" and "News" not in fields and "news" not in fields:  # MMLU's files have no header
        with open(path, encoding="utf-8", newline="") as file:
            yield from (row[0] for row in csv.reader(file) if row)
        return
    if path.suffix == ".csv":
        with open(path, encoding="latin-1", newline="") as file:
            delimiter = "\t" if "News" in fields else ","
            yield from (row[fields[0]] for row in csv.DictReader(file, delimiter=delimiter))
        return
    if path.name == "ori_pqal.json":
        rows = json.loads(path.read_text()).values()
    else:
        rows = (record.row for record in sources.read(path))
    for row in rows:
        for name in fields:
            value = row.get(name)
            yield from [value] if isinstance(value, str) else list(value or [])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: list[str], n: int) -> list[int]:
    """A 64-bit hash of every n words in a row, equal in every process (Python's own hash of text is not)."""
    if not 0 < n <= len(words):
        return []
    values = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint64)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(n, 0x9E3779B97F4A7C15, dtype=np.uint64))
        return (np.lib.stride_tricks.sliding_window_view(values, n) * powers).sum(-1, dtype=np.uint64).tolist()
