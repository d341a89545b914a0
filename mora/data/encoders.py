"""From pieces of rows to samples: the steps that all recipes share (parsing, comparison with evaluation sets, counting)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from mora.errors import DataError

from . import records
from .overlap import Index
from .packing import blocks
from .records import Conversation, Document, Record
from .report import Report
from .samples import IGNORE, Sample
from .shard_writer import Encoded

Encode = Callable[[Conversation, PreTrainedTokenizerBase, int], Sample]
Read = TypeVar("Read", Conversation, Document)
MAP_BATCH = 1000  # the number of documents that are laid end to end, as in ReLoRA's preprocessing


@dataclass(frozen=True)
class ConversationEncoder:
    """Encodes conversations, one sample each. `encode` is chat.encode, or metamath.encode for one question and answer."""

    tokenizer: PreTrainedTokenizerBase
    encode: Encode
    max_length: int
    overlap: Index
    drop_overlap: bool
    one_answer: bool

    def __call__(self, rows: list[Record], format: str) -> Encoded:
        made = Encoded()
        talks = (records.conversation(record, format) for record in rows)
        for record, talk in without_overlaps(rows, talks, self.overlap, self.drop_overlap, made.report):
            if self.one_answer and [role for role, _ in talk.turns] != ["user", "assistant"]:
                raise DataError(f"{record.where}: {len(talk.turns)} turns, expected one question and one answer")
            sample = self.encode(talk, self.tokenizer, self.max_length)
            if all(label == IGNORE for label in sample.labels[1:]):
                made.report.dropped[f"no answer within {self.max_length} tokens"] += 1
                continue
            if len(sample.input_ids) == self.max_length:
                made.report.notes[f"cut at {self.max_length} tokens"] += 1
            made.samples.append(sample)
            made.families.append(talk.family)
            count(made.report, kind_of(record, format), sample)
        return made


@dataclass(frozen=True)
class BlockEncoder:
    """Encodes plain text in blocks, as ReLoRA prepares C4: EOS after every document, the rest of a map batch left out."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def __call__(self, rows: list[Record], format: str) -> Encoded:
        made, eos = Encoded(), int(self.tokenizer.eos_token_id or 0)
        for start in range(0, len(rows), MAP_BATCH):
            texts = [records.document(record, format).text for record in rows[start : start + MAP_BATCH]]
            encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            documents = [[*ids, eos] for ids in encoded]
            cut = list(blocks(documents, self.max_length))
            made.samples += cut
            made.report.documents["text"] += len(documents)
            made.report.tokens["text"] += len(cut) * self.max_length
            left = sum(map(len, documents)) - len(cut) * self.max_length
            made.report.notes["tokens left over at the end of map batches"] += left
        return made


def without_overlaps(
    rows: list[Record], read: Iterable[Read], index: Index, drop: bool, report: Report
) -> Iterator[tuple[Record, Read]]:
    """Yield every row with what was read from it; with `drop`, without rows that overlap. Overlaps are always counted."""
    for record, row in zip(rows, read, strict=True):
        evaluation_set = index.find(row.question)
        if evaluation_set is not None:
            (report.dropped if drop else report.notes)[f"overlaps with evaluation set {evaluation_set}"] += 1
        if evaluation_set is None or not drop:
            yield record, row


def count(report: Report, kind: str, sample: Sample) -> None:
    """Count a sample as a document of its kind."""
    report.documents[kind] += 1
    report.tokens[kind] += len(sample.input_ids)


def kind_of(record: Record, format: str) -> str:
    """Return the part of a mixture that a row itself names (Tulu's dataset, MetaMath's type), else the format."""
    for field in ("dataset", "source", "type"):
        named = record.row.get(field)
        if isinstance(named, str) and format != "math":
            return named.split("/")[0]
    return format
