"""The part of a run's description that says what the data are. Field names are those of the YAML files in configs/."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

from mora.frozen import FrozenModel

RowFormat = Literal["messages", "instruction", "lima", "sharegpt", "openorca", "metamath", "gsm8k", "math", "text"]
MadeFormat = Literal["messages", "instruction", "metamath", "text"]  # those that data/synthetic.py makes
HeldOut = Literal["gsm8k", "math", "mmlu", "pubmedqa", "fpb", "headline", "fiqa_sa", "ner", "convfinqa"]


class HubSource(FrozenModel):
    """Files of a data set on the hub, or the same files under MORA_DATA_DIR/<id>. The result records the commit."""

    kind: Literal["hub"]
    id: str
    files: str
    revision: str
    format: RowFormat
    max_rows: PositiveInt | None


class FileSource(FrozenModel):
    """Files by a glob pattern, relative to MORA_DATA_DIR. `sha256`, where given, must be that of the one file."""

    kind: Literal["files"]
    files: str
    sha256: str | None = None
    format: RowFormat
    max_rows: PositiveInt | None = None


class SyntheticSource(FrozenModel):
    """Rows of the format made on the spot, for scale=smoke: they prove the path and mean nothing."""

    kind: Literal["synthetic"]
    rows: PositiveInt
    seed: int
    format: MadeFormat


Source = Annotated[HubSource | FileSource | SyntheticSource, Field(discriminator="kind")]


class Corpus(FrozenModel):
    """Rows of `sources`, one after the other; of `local`, if all of its files are there, where a source is on the hub.

    `validation`: rows that are held out where `local` is taken; without them, documents of the corpus itself are.
    """

    sources: Annotated[list[Source], Field(min_length=1)]
    local: list[FileSource]
    validation: list[FileSource] = []


class Overlap(FrozenModel):
    """Evaluation sets that training rows are compared with, and what is done with a row that overlaps."""

    sets: list[HeldOut]
    action: Literal["drop", "report"]


class UuidData(FrozenModel):
    kind: Literal["uuid"]
    pairs: PositiveInt
    seed: int
    loss_on: Literal["all", "value"]


class ChatData(FrozenModel):
    """Conversations in the Tulu format; the loss is on the assistant's turns."""

    kind: Literal["chat"]
    corpus: Corpus
    overlap: Overlap
    max_length: PositiveInt
    packing: Literal["none", "isolated"]
    validation_sequences: NonNegativeInt


class MetaMathData(FrozenModel):
    """Question and answer in the Alpaca prompt; the loss is on the answer."""

    kind: Literal["metamath"]
    corpus: Corpus
    overlap: Overlap
    max_length: PositiveInt
    packing: Literal["none", "isolated"]
    validation_sequences: NonNegativeInt


class ReadingData(FrozenModel):
    """Domain texts as reading comprehension, mixed with general instructions by tokens."""

    kind: Literal["reading_comprehension"]
    domain: Literal["biomedicine", "finance"]
    texts: Corpus
    instructions: Corpus
    instruction_tokens_per_text_token: NonNegativeFloat
    keyword_documents: PositiveInt
    overlap: Overlap
    max_length: PositiveInt
    packing: Literal["blocks", "isolated"]
    max_sequences: PositiveInt | None
    seed: int
    validation_sequences: NonNegativeInt


class PretrainData(FrozenModel):
    """Plain text in blocks of `max_length` tokens."""

    kind: Literal["pretrain"]
    corpus: Corpus
    max_length: PositiveInt
    max_sequences: PositiveInt | None
    validation_sequences: NonNegativeInt


TaskData = Annotated[UuidData | ChatData | MetaMathData | ReadingData | PretrainData, Field(discriminator="kind")]
