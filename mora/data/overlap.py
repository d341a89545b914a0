"""Training rows that hold a question of an evaluation set: found by shared runs of words, then dropped or only counted."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mora.config.data_schema import HubSource, Overlap

from . import sources
from .files import read_cells, read_json, read_rows, read_text
from .records import DataError

NGRAM = 13  # words in a row that are compared, as in GPT-3's check; a shorter question must be the whole text
SHARE = 0.5  # of a question's runs that the row must hold: phrases and drawings that many questions share do not count
SHORTEST = 5  # questions of fewer words are left out: anything would match them
NOT_COMPARED = "not compared: neither under MORA_DATA_DIR nor on a hub that answers"
_WORD = re.compile(r"[a-z0-9]+")


def _rows(path: Path, encoding: str = "utf-8", delimiter: str | None = None) -> Iterator[dict[str, Any]]:
    yield from (record.row for record in read_rows(path, encoding, delimiter))


def _mmlu(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix != ".csv":
        yield from _rows(path)
        return
    yield from ({"question": cells[0]} for _, cells in read_cells(path))  # its own files have no header


def _pubmedqa(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".json":
        yield from read_json(path).values()
        return
    for row in _rows(path):  # the hub's
        yield {"QUESTION": row["question"], "CONTEXTS": row["context"]["contexts"]}


def _fiqa_sa(path: Path) -> Iterator[dict[str, Any]]:
    yield from read_json(path).values()


def _convfinqa(path: Path) -> Iterator[dict[str, Any]]:
    yield from (row["doc"] for row in read_json(path)["dev"])


def _ner(path: Path) -> Iterator[dict[str, Any]]:
    for sentence in re.split(r"\n\s*\n", read_text(path).replace("\r\n", "\n")):
        words = [line.split()[0] for line in sentence.splitlines() if line.strip()]
        if words and words != ["-DOCSTART-"]:
            yield {"text": " ".join(words)}


@dataclass(frozen=True)
class HeldOutSet:
    """Where an evaluation set's questions are: a local glob under MORA_DATA_DIR, and files of a hub set."""

    local: str
    fields: tuple[str, ...]  # those of a row that hold text
    hub: str | None = None
    hub_files: str = ""
    rows: Callable[[Path], Iterator[dict[str, Any]]] = _rows  # of a file


SETS = {
    "gsm8k": HeldOutSet("gsm8k/test.jsonl", ("question",), "openai/gsm8k", "main/test*.parquet"),
    "math": HeldOutSet("math/test.jsonl", ("problem",), "EleutherAI/hendrycks_math", "*/test*.parquet"),
    "mmlu": HeldOutSet("mmlu/test/*.csv", ("question",), "cais/mmlu", "all/test*.parquet", _mmlu),
    "pubmedqa": HeldOutSet(
        "pubmedqa/ori_pqal.json", ("QUESTION", "CONTEXTS"), "qiaojin/PubMedQA", "pqa_labeled/*.parquet", _pubmedqa
    ),
    "fpb": HeldOutSet("fpb/all-data.csv", ("news",), rows=partial(_rows, encoding="latin-1")),
    "headline": HeldOutSet("headline/*.csv", ("News",), rows=partial(_rows, delimiter="\t")),
    "fiqa_sa": HeldOutSet("fiqa_sa/task1_*_test.json", ("sentence",), rows=_fiqa_sa),
    "ner": HeldOutSet("fin_ner/FIN3_test.conll", ("text",), rows=_ner),
    "convfinqa": HeldOutSet("convfinqa/dev.json", ("pre_text", "post_text"), rows=_convfinqa),
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
    local = sources.match(held_out.local)
    if not local and held_out.hub is None:
        raise DataError(sources.missing(held_out.local))
    if not local:
        hub = HubSource(
            kind="hub", id=str(held_out.hub), files=held_out.hub_files, revision="main", format="text", max_rows=None
        )
        local, _ = sources.hub_files(hub)
    return [text for path in local for row in held_out.rows(path) for text in _texts(row, held_out.fields)]


def _texts(row: dict[str, Any], fields: tuple[str, ...]) -> Iterator[str]:
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
