"""Raw rows to training samples, once: the result lies in the cache under a hash of everything it is made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mora.config.data_schema import ChatData, MetaMathData, PretrainData, ReadingData
from mora.config.lock import locked

from . import chat, metamath, overlap, packing, reading_comprehension, sources, tokens
from .encoders import BlockEncoder, ConversationEncoder
from .records import DataError
from .report import Report
from .samples import StoredSamples
from .sources import Rows
from .workshop import Workshop

RECIPE_VERSION = 1  # raised by hand when prepared samples change
PreparedData = ChatData | MetaMathData | ReadingData | PretrainData


def prepare(
    data: PreparedData, tokenizer: PreTrainedTokenizerBase, workers: int | None = None
) -> tuple[StoredSamples, dict[str, Any], Report]:
    """Samples, fingerprints of what they are made of, and the report. Made on the first call, then read from the cache.

    Of several processes one prepares and the others wait. A stopped preparation goes on where it was.
    Raises: DataError.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer {tokenizer.name_or_path!r} has no EOS token: set eos_token in its config")
    rows = {name: sources.resolve(corpus) for name, corpus in _corpora(data).items()}
    index = overlap.build(data.overlap) if not isinstance(data, PretrainData) else overlap.Index()
    fingerprints = {
        "sources": {name: [source.facts for source in group] for name, group in rows.items()},
        "held_out": index.facts,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    recipe = data.model_dump(mode="json", exclude={"validation_sequences"})
    made_of = [RECIPE_VERSION, recipe, fingerprints]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    fingerprints["prepared"] = key
    folder = sources.cache_dir() / "data" / f"{data.kind}-{key}"
    done = folder / "done.json"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # one process at a time prepares a data set
        if not done.is_file():
            shards, report = _make(data, tokenizer, Workshop(folder, len(tokenizer), workers), rows, index)
            _finish(folder, done, shards, report, rows, index)
    facts = json.loads(done.read_text())
    samples = StoredSamples([folder / name for name in facts["shards"]])
    return samples, fingerprints, Report.from_dict(facts["report"])


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Over the ids of a text with all of the tokenizer's habits in it, and its whole vocabulary."""
    probe = tokens.encode(tokenizer, "It's 3.5 %, isn't it?\n\n  Yes: naïve [1] <|user|>\n")
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    facts = [list(probe), vocabulary, tokenizer.eos_token_id, tokenizer.bos_token_id]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _corpora(data: PreparedData) -> dict[str, Any]:
    if isinstance(data, ReadingData):
        return {"texts": data.texts, "instructions": data.instructions}
    return {"corpus": data.corpus}


def _make(
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    shop: Workshop,
    rows: dict[str, list[Rows]],
    index: overlap.Index,
) -> tuple[list[Path], Report]:
    """The shards of the finished data set, and what went into it."""
    if isinstance(data, ReadingData):
        return reading_comprehension.make(data, tokenizer, shop, rows, index)
    if isinstance(data, PretrainData):
        wanted = data.max_sequences
        encoder = BlockEncoder(tokenizer, data.max_length)

        def enough(report: Report) -> bool:
            return wanted is not None and report.tokens["text"] >= wanted * data.max_length

        pieces = shop.encode("blocks", rows["corpus"], encoder, rows_per_piece=10_000, enough=enough)
        return pieces.shards, pieces.report
    encode = {"chat": chat.encode, "metamath": metamath.encode}[data.kind]
    one_answer = data.kind == "metamath"
    talks = ConversationEncoder(tokenizer, encode, data.max_length, index, data.overlap.action == "drop", one_answer)
    pieces = shop.encode("samples", rows["corpus"], talks)
    if data.packing == "none":
        return pieces.shards, pieces.report
    samples = pieces.samples
    packed = packing.bins(samples.lengths, data.max_length)
    return shop.write("packed", (packing.join([samples[i] for i in group]) for group in packed)), pieces.report


def _finish(
    folder: Path, done: Path, shards: list[Path], report: Report, rows: dict[str, list[Rows]], index: overlap.Index
) -> None:
    """Writes what was made, last of all, and removes the pieces that nobody needs any more."""
    samples = StoredSamples(shards)
    if len(samples) == 0:
        names = ", ".join(json.dumps(source.facts) for group in rows.values() for source in group)
        why = "; ".join(f"{reason}: {n}" for reason, n in report.dropped.items()) or "too little text for one sequence"
        raise DataError(f"no training sequence came of {names:.300}: {why}")
    report.notes.update(f"not compared with evaluation set {name}" for name in index.missing)
    report.sequences, report.sequence_tokens = len(samples), samples.tokens
    report.loss_tokens, report.longest = samples.loss_tokens, samples.longest
    partial = folder / ".done.json"
    partial.write_text(json.dumps({"shards": [shard.name for shard in shards], "report": report.as_dict()}, indent=1))
    os.replace(partial, done)
    kept = {shard.name for shard in shards}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in kept:
            shutil.rmtree(entry)
