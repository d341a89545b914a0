"""Domain texts as reading comprehension (AdaptLLM, arXiv:2309.09530), for continual pretraining (Tables 1, 6 and 7).

After each text come questions that it answers in its own words, and all is framed by a task about the whole text. The
patterns and shares are AdaptLLM's; the wording is ours (reading_templates.yaml).
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from mora.config.data_schema import ReadingData
from mora.errors import DataError
from mora.io import replacing

from . import mining, packing, records
from .encoders import count, without_overlaps
from .mining import Example, Keywords
from .overlap import Index
from .records import Record
from .report import Report
from .samples import Sample, Subset
from .shard_writer import Encoded, Encoder, Made, ShardWriter
from .sources import Rows

ROOM_FOR_QUESTIONS = 200  # tokens of max_length that the body leaves free
CLASSIFY = 0.8  # the share of NLI examples that ask for the relation; the others ask for the second sentence
# What is asked about the whole text: a summary, its completion, both, nothing.
FRAMES = {
    (True, True): (0.4, 0.1, 0.4, 0.1),
    (True, False): (0.5, 0.0, 0.0, 0.5),
    (False, True): (0.0, 0.5, 0.0, 0.5),
    (False, False): (0.0, 0.0, 0.0, 1.0),
}


@functools.cache
def templates() -> dict[str, Any]:
    """Return reading_templates.yaml, read once."""
    return yaml.safe_load(Path(__file__).with_name("reading_templates.yaml").read_text())


def transform(
    text: str, domain: str, keywords: Keywords, seed: int, cut: Any = lambda body: body
) -> tuple[str, Counter[str]]:
    """Return the text as reading comprehension, and how many questions of each type it got.

    All draws are a function of seed and text. If there are several lines, the first is the title. `cut` shortens the body.
    """
    rng = random.Random(hashlib.sha256(f"{seed}:{text}".encode()).digest())
    title, _, rest = text.strip().partition("\n")
    title, body = (title.strip(), rest) if rest.strip() else ("", title)
    body = cut(body.strip())
    parts = mining.sentences(body)
    mined = mining.mine(body, parts, keywords, rng)
    questions: Counter[str] = Counter({type_: len(examples) for type_, examples in mined.examples.items()})
    block = _block(mined.examples, domain, rng)
    framed, whole = _frame(title, body, parts, block, domain, rng)
    questions.update(whole)
    return re.sub(" {2,}", " ", framed), questions


def _block(examples: dict[str, list[Example]], domain: str, rng: random.Random) -> str:
    """Return all questions after a phrase that leads to them. Types are in random order, each type's questions together."""
    if not examples:
        return ""
    types = list(examples)
    rng.shuffle(types)
    questions = [_ask(example, domain, rng) for type_ in types for example in examples[type_]]
    return rng.choice(templates()["connect"]).format(domain=domain) + "\n\n".join(questions)


def _ask(example: Example, domain: str, rng: random.Random) -> str:
    """Return one question and its answer, joined by a space."""
    wording = templates()
    if mining.TYPES.get(example.kind) == "nli":
        if rng.random() < CLASSIFY:
            variants = [
                (question, group["answers"]) for group in wording["nli_classify"] for question in group["questions"]
            ]
            question, answers = rng.choice(variants)
            return f"{question.format(s1=example.s1, s2=example.s2)} {answers[example.kind]}"
        return f"{rng.choice(wording['nli_generate'][example.kind]).format(s1=example.s1)} {example.s2}"
    if example.kind == "word_to_text":
        forward, backward = wording["words_to_sentence"], wording["sentence_to_words"]
        drawn = rng.randrange(len(forward) + len(backward))
        if drawn < len(forward):
            return f"{forward[drawn].format(words=example.s1, domain=domain)} {example.s2}"
        return f"{backward[drawn - len(forward)].format(sentence=example.s2, domain=domain)} {example.s1}"
    return f"{rng.choice(wording[example.kind]).format(s1=example.s1)} {example.s2}"


def _frame(
    title: str, body: str, parts: list[str], block: str, domain: str, rng: random.Random
) -> tuple[str, list[str]]:
    """Return the whole text framed by a task, with the question block after it, and the types of the task's questions."""
    wording = templates()
    shares = FRAMES[bool(title), len(parts) >= 2]
    drawn = rng.choices(("summary", "completion", "both", "plain"), shares)[0]
    if drawn == "summary":
        chosen = rng.choice(wording["title_after"] + wording["title_before"])
        return chosen.format(article=body + block, title=title, domain=domain), ["summarisation"]
    if drawn in ("completion", "both"):
        at = rng.randrange(1, len(parts))
        start, end = " ".join(parts[:at]), " ".join(parts[at:]) + block
        name = "completion" if drawn == "completion" else "title_and_completion"
        questions = ["completion"] if drawn == "completion" else ["summarisation", "completion"]
        return rng.choice(wording[name]).format(start=start, end=end, title=title, domain=domain), questions
    text = rng.choice(wording["plain"]).format(article=body + block, domain=domain)
    return (f"{title}\n\n{text}" if title else text), []


@dataclass(frozen=True)
class TextEncoder:
    """Encodes texts as token ids with EOS at the end. Each is a sample, not yet packed."""

    tokenizer: PreTrainedTokenizerBase
    keywords: Keywords
    data: ReadingData
    overlap: Index

    def __call__(self, rows: list[Record], format: str) -> Encoded:
        made = Encoded()
        texts, drop = (records.document(record, format) for record in rows), self.data.overlap.action == "drop"
        for _, text in without_overlaps(rows, texts, self.overlap, drop, made.report):
            cut = functools.partial(self._cut, report=made.report)
            framed, questions = transform(text.text, self.data.domain, self.keywords, self.data.seed, cut)
            made.report.questions += questions
            made.samples.append(_plain(framed, self.tokenizer))
            count(made.report, "texts", made.samples[-1])
        return made

    def _cut(self, body: str, report: Report) -> str:
        """Return the text of the first max_length - ROOM_FOR_QUESTIONS tokens; if the body is longer, count that."""
        room = max(1, self.data.max_length - ROOM_FOR_QUESTIONS)
        offsets = self.tokenizer(body, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) <= room:
            return body
        report.notes[f"texts cut at {room} tokens, which leaves room for questions"] += 1
        report.notes[f"tokens of texts cut off at {room}"] += len(offsets) - room
        return body[: offsets[room - 1][1]].rstrip()


@dataclass(frozen=True)
class InstructionEncoder:
    """Encodes general instructions as plain text: a blank line between turns, EOS at the end, and a loss on every token."""

    tokenizer: PreTrainedTokenizerBase
    overlap: Index
    drop_overlap: bool

    def __call__(self, rows: list[Record], format: str) -> Encoded:
        made = Encoded()
        talks = (records.conversation(record, format) for record in rows)
        for _, talk in without_overlaps(rows, talks, self.overlap, self.drop_overlap, made.report):
            text = "\n\n".join(content.strip() for _, content in talk.turns)
            made.samples.append(_plain(text, self.tokenizer))
            count(made.report, "instructions", made.samples[-1])
        return made


def _plain(text: str, tokenizer: PreTrainedTokenizerBase) -> Sample:
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id or 0)]
    return Sample(ids, list(ids))


def make(
    data: ReadingData,
    tokenizer: PreTrainedTokenizerBase,
    writer: ShardWriter,
    rows: dict[str, list[Rows]],
    held_out: dict[str, list[Rows]],
    index: Index,
) -> Made:
    """Make texts and instructions, shuffled by document and packed. Instructions stop at their share of the tokens.

    Whole documents in the same mix are held out: those of `held_out`, or, if that is empty, documents drawn from the others.
    """
    ratio = data.instruction_tokens_per_text_token
    wanted = None if data.max_sequences is None else data.max_sequences * data.max_length / (1 + ratio)
    apart = data.validation_sequences * data.max_length / (1 + ratio)
    encoder = TextEncoder(tokenizer, _keywords(data, tokenizer, writer.folder, rows["texts"]), data, index)
    texts = _stream(writer, "texts", (rows["texts"], held_out["texts"]), encoder, 200, wanted, apart)
    goal = ratio * texts.training.lengths.sum()
    talks = InstructionEncoder(tokenizer, index, data.overlap.action == "drop")
    both = rows["instructions"], held_out["instructions"]
    talk = _stream(writer, "instructions", both, talks, 1000, goal, ratio * apart)
    report = texts.report + talk.report
    for name, used in (("texts", texts.training), ("instructions", talk.training)):
        report.documents[name], report.tokens[name] = len(used), int(used.lengths.sum())
    if report.tokens["instructions"] < goal:
        short = int(goal - report.tokens["instructions"])
        report.notes["instruction tokens short of their share: the instructions ran out"] += short
    packed = _packed(data, texts.training, talk.training, report)
    validation = islice(_packed(data, texts.validation, talk.validation, Report()), data.validation_sequences)
    training = writer.write("packed", islice(packed, data.max_sequences))
    return Made(training, report, writer.write("validation", validation))


class _Stream(NamedTuple):
    """The documents of one part of the mix, not yet packed."""

    training: Subset
    validation: Subset
    report: Report


def _stream(
    writer: ShardWriter,
    name: str,
    rows: tuple[list[Rows], list[Rows]],
    encoder: Encoder,
    rows_per_piece: int,
    wanted: float | None,
    apart: float,
) -> _Stream:
    """Return documents of `wanted` tokens in all (None: all documents) to train on, and others of `apart` tokens, held out.

    `rows` are the rows to train on and those to hold out. If there are none of the latter, the held-out documents are drawn,
    in the same way for every run.
    """
    drawn = 0 if rows[1] else apart
    limit = None if wanted is None else wanted + drawn

    def enough(report: Report) -> bool:
        return limit is not None and report.tokens[name] >= limit

    encoded = writer.encode(name, rows[0], encoder, rows_per_piece, enough)
    samples, order = encoded.samples, np.arange(_up_to(encoded.samples.lengths, limit))
    if rows[1]:
        others = writer.encode(f"held_out_{name}", rows[1], encoder, rows_per_piece).samples
        validation = Subset(others, np.arange(_up_to(others.lengths, apart)))
        return _Stream(Subset(samples, order), validation, encoded.report)
    shuffled = np.random.default_rng(0).permutation(order)
    n = _up_to(samples.lengths[shuffled], drawn)
    if drawn and n == len(order) > 0:
        raise DataError(f"task.data.validation_sequences: all {n} documents of the {name} would be held out; lower it")
    return _Stream(Subset(samples, np.sort(shuffled[n:])), Subset(samples, np.sort(shuffled[:n])), encoded.report)


def _up_to(lengths: np.ndarray, tokens: float | None) -> int:
    """Return how many documents, from the first on, have `tokens` tokens in all; for None, the number of documents."""
    if tokens is None:
        return len(lengths)
    return min(len(lengths), int(np.searchsorted(np.concatenate([[0], np.cumsum(lengths)]), tokens)))


def _packed(data: ReadingData, texts: Subset, talk: Subset, report: Report) -> Iterator[Sample]:
    n, m = len(texts), len(talk)
    order = np.random.default_rng(data.seed).permutation(n + m).tolist()

    def at(i: int) -> Sample:
        return texts[i] if i < n else talk[i - n]

    if data.packing == "blocks":
        yield from packing.blocks((at(i).input_ids for i in order), data.max_length)
        return
    lengths = np.concatenate([texts.lengths, talk.lengths])[order]
    over = np.maximum(lengths - data.max_length, 0)
    report.notes[f"cut at {data.max_length} tokens"] += int(np.count_nonzero(over))
    report.notes[f"tokens cut off at {data.max_length}"] += int(over.sum())
    for group in packing.bins(np.minimum(lengths, data.max_length), data.max_length):
        members = (at(order[i]) for i in group)
        cut = [Sample(s.input_ids[: data.max_length], s.labels[: data.max_length]) for s in members]
        yield packing.join(cut)


def _keywords(data: ReadingData, tokenizer: PreTrainedTokenizerBase, folder: Path, rows: list[Rows]) -> Keywords:
    """Learn keywords from the first texts, and keep them in the folder, so that a resumed preparation has the same ones."""
    kept = folder / "keywords.json"
    if not kept.is_file():
        first = islice(((record, source.format) for source in rows for record in source), data.keyword_documents)
        texts = (records.document(record, format).text for record, format in first)
        learnt = mining.learn_keywords(texts, tokenizer.get_vocab())
        with replacing(kept) as partial:
            learnt.tokenizer.save(str(partial))
    trained = Tokenizer.from_file(str(kept))
    return mining.keywords_of(trained, tokenizer.get_vocab())
