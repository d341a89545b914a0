"""Training rows that contain a question of an evaluation set. They are found by shared runs of words."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mora.config.data_schema import HubSource, Overlap
from mora.errors import DataError, MissingData
from mora.io import data_dir

from . import sources
from .files import record_of
from .records import Record, field_error
from .sets import SETS, EvaluationSet

NGRAM = 13  # the words of a run, as in GPT-3's check; a question of fewer words must be the whole text
SHARE = 0.5  # of a question's runs, the least share in an overlapping row: many questions share phrases and drawings
SHORTEST = 5  # questions of fewer words are not compared, since anything would match them
NOT_COMPARED = "not compared: neither under MORA_DATA_DIR nor on a hub that answers"
_WORD = re.compile(r"[a-z0-9]+")


@dataclass
class Index:
    """Hashes of the evaluation sets' word sequences."""

    runs: dict[int, list[int]] = field(default_factory=dict)  # a run of NGRAM words -> the questions with it
    sizes: list[tuple[int, str]] = field(default_factory=list)  # by question: its number of runs, and its set
    whole: dict[int, str] = field(default_factory=dict)  # a short question -> its set
    facts: dict[str, str] = field(default_factory=dict)  # a set -> sha256 of its questions, or NOT_COMPARED

    @property
    def missing(self) -> list[str]:
        """Return the sets that were not there."""
        return [name for name, fact in self.facts.items() if fact == NOT_COMPARED]

    def add(self, name: str, questions: list[str]) -> None:
        """Add the questions of a set."""
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
        """Return the set that a text overlaps with, or None.

        It overlaps if it has half of a question's runs, or if it is a short question and nothing else.
        """
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
    """Return the index of the named sets. A set that is not there is left out, and `facts` say so.

    Raises:
        DataError: A set is there but damaged.
    """
    index = Index()
    for name in overlap.sets:
        try:
            index.add(name, questions_of(SETS[name]))
        except MissingData:
            index.facts[name] = NOT_COMPARED
        except DataError as error:
            raise DataError(f"{error}; mend the file or leave {name} out of task.data.overlap.sets") from error
    return index


def questions_of(held_out: EvaluationSet) -> list[str]:
    """Return every question of the split that is scored.

    Raises:
        MissingData: The set is neither under MORA_DATA_DIR nor on a hub that answers.
        DataError: A file is damaged, or has no questions.
    """
    paths = held_out.local(held_out.scored, data_dir())
    if not paths:
        paths = _from_hub(held_out)
    questions = []
    for path in paths:
        before = len(questions)
        questions += [text for record in held_out.rows(path) for text in _texts(record, held_out.questions)]
        if len(questions) == before:
            raise DataError(f"{path}: there are no questions")
    return questions


def _from_hub(held_out: EvaluationSet) -> list[Path]:
    if held_out.hub is None:
        raise MissingData(sources.missing(held_out.files[held_out.scored][0]))
    hub = held_out.hub
    source = HubSource(kind="hub", id=hub.id, files=hub.files, revision=hub.revision, format="text", max_rows=None)
    paths, _ = sources.hub_files(source)
    return paths


def _texts(record: Record, fields: tuple[str, ...]) -> Iterator[str]:
    for name in fields:
        *outer, last = name.split(".")
        inside = record
        for part in outer:
            inside = record_of(f"{inside.where}: field {part!r}", inside.row.get(part))
        value = inside.row.get(last)
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise field_error(inside, last, "a text or a list of texts")
        yield from texts


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: list[str], n: int) -> list[int]:
    """Return a 64-bit hash of every run of n words. It is the same in every process, unlike Python's own hash of text."""
    if not 0 < n <= len(words):
        return []
    values = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint64)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(n, 0x9E3779B97F4A7C15, dtype=np.uint64))
        return (np.lib.stride_tricks.sliding_window_view(values, n) * powers).sum(-1, dtype=np.uint64).tolist()
