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
MadeFormat = Literal["messages", "instruction", "metamath", "text"]  # the formats that data/synthetic.py makes
HeldOut = Literal["gsm8k", "math", "mmlu", "pubmedqa", "fpb", "headline", "fiqa_sa", "ner", "convfinqa"]


class HubSource(FrozenModel):
    """Files of a data set on the Hub, or the same files below `MORA_DATA_DIR/ID`. Read by `mora/data/sources.py`."""

    kind: Literal["hub"]
    """This kind of source."""
    id: str
    """The set's OWNER/NAME."""
    files: str
    """A glob of its files."""
    revision: str
    """A branch or commit. The result records the commit."""
    format: RowFormat
    """Which fields its rows have: `mora/data/records.py`."""
    max_rows: PositiveInt | None
    """How many of the first rows are read; null: all."""


class FileSource(FrozenModel):
    """Local files. Read by `mora/data/sources.py`."""

    kind: Literal["files"]
    """This kind of source."""
    files: str
    """A glob, absolute or below `MORA_DATA_DIR`."""
    sha256: str | None = None
    """The digest that the one file must have; null: any, and the result records it."""
    format: RowFormat
    """Which fields its rows have: `mora/data/records.py`."""
    max_rows: PositiveInt | None = None
    """How many of the first rows are read; null: all."""


class SyntheticSource(FrozenModel):
    """Rows made up on the spot, for scale smoke: they prove the path and mean nothing. Read by `mora/data/synthetic.py`."""

    kind: Literal["synthetic"]
    """This kind of source."""
    rows: PositiveInt
    """How many rows are made."""
    seed: int
    """Seeds them."""
    format: MadeFormat
    """Which fields they have."""


Source = Annotated[HubSource | FileSource | SyntheticSource, Field(discriminator="kind")]


class Corpus(FrozenModel):
    """The rows of one or more sources, one source after the other. Read by `mora/data/sources.py`."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """Where the rows come from."""
    local: list[FileSource]
    """Files that are taken instead of sources on the Hub, if all of them are there; empty: none."""
    validation: list[FileSource] = []
    """Files of held-out rows beside `local`; empty: documents of the corpus itself are held out."""


class Overlap(FrozenModel):
    """The comparison of training rows with the questions of evaluation sets. Read by `mora/data/overlap.py`."""

    sets: list[HeldOut]
    """Names of `mora/data/sets.py`."""
    action: Literal["drop", "report"]
    """drop: leave out a row that holds such a question. report: count it, and train on it."""


class UuidData(FrozenModel):
    """Pairs of random UUIDs, the second to be memorised for the first. Read by `mora/data/uuid.py`."""

    kind: Literal["uuid"]
    """This recipe."""
    pairs: PositiveInt
    """How many pairs there are, each a sequence."""
    seed: int
    """Seeds the pairs. The run's seed leaves them alone."""
    loss_on: Literal["all", "value"]
    """Which tokens the loss counts: all, or those of the second UUID."""


class ChatData(FrozenModel):
    """Conversations in the Tulu format, with the loss on the assistant's turns. Read by `mora/data/chat.py`."""

    kind: Literal["chat"]
    """This recipe."""
    corpus: Corpus
    """The conversations."""
    overlap: Overlap
    """What the training rows are compared with."""
    max_length: PositiveInt
    """Tokens after which a sequence is cut."""
    packing: Literal["none", "isolated"]
    """none: one conversation per sequence. isolated: several, none of which sees another."""
    validation_sequences: NonNegativeInt
    """Sequences of held-out conversations, on which the learning rate is chosen."""


class MetaMathData(FrozenModel):
    """Question and answer in the Alpaca prompt, with the loss on the answer. Read by `mora/data/metamath.py`."""

    kind: Literal["metamath"]
    """This recipe."""
    corpus: Corpus
    """The questions and answers."""
    overlap: Overlap
    """What the training rows are compared with."""
    max_length: PositiveInt
    """Tokens after which a sequence is cut."""
    packing: Literal["none", "isolated"]
    """none: one question per sequence. isolated: several, none of which sees another."""
    validation_sequences: NonNegativeInt
    """Held-out questions, on which the learning rate is chosen. Other wordings of them are not trained on."""


class ReadingData(FrozenModel):
    """Texts of a domain as reading comprehension, mixed with general instructions.

    Read by `mora/data/reading_comprehension.py`.
    """

    kind: Literal["reading_comprehension"]
    """This recipe."""
    domain: Literal["biomedicine", "finance"]
    """Which templates and connectives the exercises are mined with."""
    texts: Corpus
    """The domain's texts."""
    instructions: Corpus
    """The general instructions."""
    instruction_tokens_per_text_token: NonNegativeFloat
    """How much of the mixture is instructions, by tokens."""
    keyword_documents: PositiveInt
    """Texts, the first ones, from which the domain's vocabulary is learnt."""
    overlap: Overlap
    """What the rows of both corpora are compared with."""
    max_length: PositiveInt
    """Tokens of a sequence."""
    packing: Literal["blocks", "isolated"]
    """blocks: documents end to end, cut every `max_length` tokens. isolated: whole ones, none of which sees another."""
    max_sequences: PositiveInt | None
    """Sequences after which no more are made; null: all texts."""
    seed: NonNegativeInt
    """Seeds the mining, the templates and the order of documents."""
    validation_sequences: NonNegativeInt
    """Sequences of held-out documents, on which the learning rate is chosen."""


class PretrainData(FrozenModel):
    """Plain text in blocks. Read by `mora/data/prepare.py`."""

    kind: Literal["pretrain"]
    """This recipe."""
    corpus: Corpus
    """The texts."""
    max_length: PositiveInt
    """Tokens of a block."""
    max_sequences: PositiveInt | None
    """Blocks after which no more are made; null: all texts."""
    validation_sequences: NonNegativeInt
    """Held-out blocks, on which the learning rate is chosen."""


TaskData = Annotated[UuidData | ChatData | MetaMathData | ReadingData | PretrainData, Field(discriminator="kind")]
