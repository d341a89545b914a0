"""From raw rows to training samples, once: the result is in the cache under a hash of everything it is made of."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from mora.config.data_schema import ChatData, MetaMathData, PretrainData, ReadingData
from mora.config.seal import sealed, unsealed
from mora.errors import DataError
from mora.io import cache_dir, locked, replace_file

from . import chat, manifest, metamath, overlap, packing, reading_comprehension, sources, tokens
from .encoders import BlockEncoder, ConversationEncoder
from .report import Report
from .samples import StoredSamples, Subset, hold_out, hold_out_families
from .shard_writer import Made, ShardWriter
from .sources import Rows

RECIPE_VERSION, BLOCKS_VERSION = 2, 1  # raised by hand when prepared samples change; the second is PretrainData's
PreparedData = ChatData | MetaMathData | ReadingData | PretrainData
RowsByName = dict[str, list[Rows]]


class Prepared(NamedTuple):
    """Prepared samples. `fingerprints` are those of what the samples are made of."""

    training: StoredSamples | Subset
    validation: StoredSamples | Subset
    fingerprints: dict[str, Any]
    report: Report


def prepare(data: PreparedData, tokenizer: PreTrainedTokenizerBase, workers: int | None = None) -> Prepared:
    """Prepare data on the first call, and read them from the cache afterwards.

    If several processes call this, one prepares and the others wait. A stopped preparation resumes where it was.

    Args:
        data: The data to prepare.
        tokenizer: The model's tokenizer.
        workers: The number of processes that encode. None means one per CPU.

    Raises:
        DataError: Data cannot be used; the error names file, line and field.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer {tokenizer.name_or_path!r} has no EOS token: set eos_token in its config")
    corpora = _corpora(data)
    rows = {name: sources.resolve(corpus) for name, corpus in corpora.items()}
    held_out = {name: sources.resolve_held_out(corpus) for name, corpus in corpora.items()}
    index = overlap.build(data.overlap) if not isinstance(data, PretrainData) else overlap.Index()
    fingerprints = {
        "sources": {name: [source.facts for source in group] for name, group in rows.items()},
        "held_out": index.facts,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    if any(held_out.values()):
        fingerprints["validation"] = {name: [source.facts for source in group] for name, group in held_out.items()}
    made_of = [*_recipe(data), fingerprints]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    fingerprints["prepared"] = key
    folder = cache_dir() / "data" / f"{data.kind}-{key}"
    done = folder / "done.json"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # one process at a time prepares a data set
        if (facts := _finished(done)) is None:
            writer = ShardWriter(folder, len(tokenizer), workers)
            made = _make(data, tokenizer, writer, rows, held_out, index)
            if not isinstance(data, PretrainData):
                _check_held_out(data, made)
            _finish(folder, done, made, rows, index)
            facts = json.loads(done.read_text())
    samples, apart = (
        StoredSamples([folder / name for name in facts.get(part, ())]) for part in ("shards", "validation")
    )
    report = Report.from_dict(facts["report"])
    if isinstance(data, PretrainData):
        _check_enough(data, len(samples))
        return Prepared(*hold_out(samples, data.validation_sequences), fingerprints, report)
    left_out = facts["left_out"]
    training = Subset(samples, np.delete(np.arange(len(samples)), left_out)) if left_out else samples
    return Prepared(training, apart, fingerprints, report)


def _finished(done: Path) -> dict[str, Any] | None:
    """Return what `_finish` wrote; None if it wrote nothing, or if that or a shard is damaged.

    In the latter case, those shards that are whole are used again.
    """
    if not done.exists():
        return None
    try:
        facts = unsealed(json.loads(done.read_text()))
        shards = [done.parent / name for part in ("shards", "validation") for name in facts.get(part, ())]
        if (wrong := next(filter(None, map(manifest.damage, shards)), None)) is None:
            return facts
    except (OSError, ValueError, AttributeError, TypeError) as error:
        wrong = f"{done} is damaged ({error})"
    print(f"{wrong}: the data are prepared again", file=sys.stderr, flush=True)
    shutil.rmtree(done) if done.is_dir() else done.unlink()
    return None


def _recipe(data: PreparedData) -> list[Any]:
    if isinstance(data, PretrainData):  # held-out blocks are some of those prepared
        apart: Any = {"validation_sequences": True, "corpus": {"validation"}}
        return [BLOCKS_VERSION, data.model_dump(mode="json", exclude=apart)]
    return [RECIPE_VERSION, data.model_dump(mode="json")]


def _check_enough(data: PreparedData, there_are: int) -> None:
    """Raise DataError if nothing would be left to train on."""
    if data.validation_sequences >= max(1, there_are):
        raise DataError(
            f"task.data.validation_sequences={data.validation_sequences}: the data have only {there_are} sequences"
        )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest over the whole vocabulary, and over the ids of a text that shows all habits of the tokenizer."""
    probe = tokens.encode(tokenizer, "It's 3.5 %, isn't it?\n\n  Yes: naïve [1] <|user|>\n")
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    facts = [list(probe), vocabulary, tokenizer.eos_token_id, tokenizer.bos_token_id]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _corpora(data: PreparedData) -> dict[str, Any]:
    if isinstance(data, ReadingData):
        return {"texts": data.texts, "instructions": data.instructions}
    return {"corpus": data.corpus}


def _check_held_out(data: PreparedData, made: Made) -> None:
    """Raise DataError if something was to be held out, and nothing is."""
    if data.validation_sequences and not len(StoredSamples(made.validation)):
        raise DataError(
            f"task.data.validation_sequences={data.validation_sequences}: not one sequence came of what is held out; give "
            f"more rows, a larger task.data.max_length than {data.max_length}, or 0, which holds out none"
        )


def _make(
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    writer: ShardWriter,
    rows: RowsByName,
    held_out: RowsByName,
    index: overlap.Index,
) -> Made:
    """Return the shards of the finished data set, and what went into it."""
    if isinstance(data, ReadingData):
        return reading_comprehension.make(data, tokenizer, writer, rows, held_out, index)
    if isinstance(data, PretrainData):
        wanted = data.max_sequences
        encoder = BlockEncoder(tokenizer, data.max_length)

        def enough(report: Report) -> bool:
            return wanted is not None and report.tokens["text"] >= wanted * data.max_length

        encoded = writer.encode("blocks", rows["corpus"], encoder, rows_per_piece=10_000, stop_when=enough)
        return Made(encoded.shards, encoded.report)
    return _conversations(data, tokenizer, writer, rows["corpus"], held_out["corpus"], index)


def _conversations(
    data: ChatData | MetaMathData,
    tokenizer: PreTrainedTokenizerBase,
    writer: ShardWriter,
    rows: list[Rows],
    held_out: list[Rows],
    index: overlap.Index,
) -> Made:
    """Make one sample per row.

    The first rows of `held_out` are held out. If there are none, one row each of some families is held out, and their other
    rows are not trained on either.
    """
    encode, n = {"chat": chat.encode, "metamath": metamath.encode}[data.kind], data.validation_sequences
    one_answer = data.kind == "metamath"
    talks = ConversationEncoder(tokenizer, encode, data.max_length, index, data.overlap.action == "drop", one_answer)
    encoded = writer.encode("samples", rows, talks)
    samples, left_out = encoded.samples, np.zeros(0, np.int64)
    if held_out:
        chosen = writer.encode("held_out", held_out, talks).samples[:n]
    else:
        families = samples.families
        if len(samples):
            _check_enough(data, len(np.unique(families)))
        drawn, left_out = hold_out_families(families, n)
        chosen = [samples[int(i)] for i in drawn]
        encoded.report.notes["rows left out of training: held out, or of a question that is"] += len(left_out)
    validation = writer.write("validation", chosen)
    if data.packing == "none":
        return Made(encoded.shards, encoded.report, validation, left_out.tolist())
    kept = np.delete(np.arange(len(samples)), left_out)
    packed = packing.bins(samples.lengths[kept], data.max_length)
    joined = (packing.join([samples[int(kept[i])] for i in group]) for group in packed)
    return Made(writer.write("packed", joined), encoded.report, validation)


def _finish(folder: Path, done: Path, made: Made, rows: RowsByName, index: overlap.Index) -> None:
    """Record what was made, as the last step, and remove the pieces that are no longer needed."""
    samples, report = StoredSamples(made.training), made.report
    if len(samples) == 0:
        names = ", ".join(json.dumps(source.facts) for group in rows.values() for source in group)
        why = "; ".join(f"{reason}: {n}" for reason, n in report.dropped.items()) or "too little text for one sequence"
        raise DataError(f"no training sequence came of {names:.300}: {why}")
    report.notes.update(f"not compared with evaluation set {name}" for name in index.missing)
    lengths = np.delete(samples.lengths, made.left_out)
    report.sequences, report.sequence_tokens, report.longest = len(lengths), int(lengths.sum()), int(lengths.max())
    report.loss_tokens = samples.loss_tokens - sum(samples[i].n_loss for i in made.left_out)
    parts = {"shards": made.training, "validation": made.validation}
    names_of = {part: [shard.name for shard in shards] for part, shards in parts.items()}
    facts = {**names_of, "left_out": made.left_out, "report": report.as_dict()}
    replace_file(done, json.dumps(sealed(facts), indent=1))
    kept = {name for group in names_of.values() for name in group}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in kept:
            shutil.rmtree(entry)
