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

import numpy as np

from mora.config.data_schema import HubSource, Overlap
from mora.errors import DataError, MissingData

from . import sources
from .files import read_cells, read_json, read_rows, read_text, record_of
from .records import Record, field_error

NGRAM = 13  # words in a row that are compared, as in GPT-3's check; a shorter question must be the whole text
SHARE = 0.5  # of a question's runs that the row must hold: phrases and drawings that many questions share do not count
SHORTEST = 5  # questions of fewer words are left out: anything would match them
NOT_COMPARED = "not compared: neither under MORA_DATA_DIR nor on a hub that answers"
_WORD = re.compile(r"[a-z0-9]+")


def _mmlu(path: Path) -> Iterator[Record]:
    if path.suffix != ".csv":
        yield from read_rows(path)
        return
    for where, cells in read_cells(path):  # its own files have no header
        if len(cells) != 6:
            raise DataError(f"{where}: {len(cells)} fields, expected 6: question, four options and a letter")
        yield Record(where, {"question": cells[0]})


def _pubmedqa(path: Path) -> Iterator[Record]:
    if path.suffix == ".json":
        yield from _by_key(path)
        return
    for record in read_rows(path):  # the hub's
        context = record_of(f"{record.where}: field 'context'", record.row.get("context"))
        yield Record(record.where, {"QUESTION": record.row.get("question"), "CONTEXTS": context.row.get("contexts")})


def _by_key(path: Path) -> Iterator[Record]:
    """The rows of a JSON object."""
    for key, row in record_of(str(path), read_json(path)).row.items():
        yield record_of(f"{path}, {key}", row)


def _convfinqa(path: Path) -> Iterator[Record]:
    whole = record_of(str(path), read_json(path))
    rows = whole.row.get("dev")
    if not isinstance(rows, list):
        raise field_error(whole, "dev", "a list of rows")
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        yield record_of(f"{where}: field 'doc'", record_of(where, row).row.get("doc"))


def _ner(path: Path) -> Iterator[Record]:
    words: list[str] = []
    fields = 0  # of a line: a word and its tags
    for number, line in enumerate([*read_text(path).splitlines(), ""], 1):  # an empty line ends a sentence
        cells = line.split()
        if cells:
            fields = fields or max(2, len(cells))
            if len(cells) != fields:
                raise DataError(f"{path}:{number}: is {line!r:.40}, expected a word and its tags, {fields} fields")
            words.append(cells[0])
            continue
        if words and words != ["-DOCSTART-"]:
            yield Record(f"{path}:{number}", {"text": " ".join(words)})
        words = []


@dataclass(frozen=True)
class HeldOutSet:
    """Where an evaluation set's questions are: a local glob under MORA_DATA_DIR, and files of a hub set."""

    local: str
    fields: tuple[str, ...]  # those of a row that hold text
    hub: str | None = None
    hub_files: str = ""
    rows: Callable[[Path], Iterator[Record]] = read_rows  # of a file


SETS = {
    "gsm8k": HeldOutSet("gsm8k/test.jsonl", ("question",), "openai/gsm8k", "main/test*.parquet"),
    "math": HeldOutSet("math/test.jsonl", ("problem",), "EleutherAI/hendrycks_math", "*/test*.parquet"),
    "mmlu": HeldOutSet("mmlu/test/*.csv", ("question",), "cais/mmlu", "all/test*.parquet", _mmlu),
    "pubmedqa": HeldOutSet(
        "pubmedqa/ori_pqal.json", ("QUESTION", "CONTEXTS"), "qiaojin/PubMedQA", "pqa_labeled/*.parquet", _pubmedqa
    ),
    "fpb": HeldOutSet("fpb/all-data.csv", ("news",), rows=partial(read_rows, encoding="latin-1")),
    "headline": HeldOutSet("headline/*.csv", ("News",), rows=partial(read_rows, delimiter="\t")),
    "fiqa_sa": HeldOutSet("fiqa_sa/task1_*_test.json", ("sentence",), rows=_by_key),
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
    """The index of the named sets. A set that is not there is left out; `facts` then say so.

    Raises: DataError for a set that is there but damaged.
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


def questions_of(held_out: HeldOutSet) -> list[str]:
    """Raises: MissingData where the set is neither under MORA_DATA_DIR nor on a hub that answers; DataError."""
    local = sources.match(held_out.local)
    if not local and held_out.hub is None:
        raise MissingData(sources.missing(held_out.local))
    if not local:
        hub = HubSource(
            kind="hub", id=str(held_out.hub), files=held_out.hub_files, revision="main", format="text", max_rows=None
        )
        local, _ = sources.hub_files(hub)
    questions = []
    for path in local:
        before = len(questions)
        questions += [text for record in held_out.rows(path) for text in _texts(record, held_out.fields)]
        if len(questions) == before:
            raise DataError(f"{path}: there are no questions")
    return questions


def _texts(record: Record, fields: tuple[str, ...]) -> Iterator[str]:
    for name in fields:
        value = record.row.get(name)
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise field_error(record, name, "a text or a list of texts")
        yield from texts


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
