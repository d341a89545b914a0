"""Training data of the six tasks: from raw rows to token ids and labels. A run needs only `load`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mora.config.data_schema import UuidData
from mora.config.schema import RunConfig

from .report import Report
from .samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingData:
    """The data that a run trains on. `samples` need not be in memory; `fingerprints` and `report` go into the result."""

    samples: Sequence[Sample]
    fingerprints: dict[str, Any]
    report: Report
    validation: Sequence[Sample] = ()  # held out, for the choice of a learning rate
    pairs: list[tuple[str, str]] = field(default_factory=list)  # of the task uuid, whose evaluation asks for them


def load(config: RunConfig, tokenizer: PreTrainedTokenizerBase, workers: int | None = None) -> TrainingData:
    """Return the data of the run's task, prepared on the first call with these data and this tokenizer.

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
        workers: The number of processes that prepare. None means one per CPU.

    Raises:
        DataError: Data cannot be used; the error names file, line and field.
    """
    data = config.task.data
    if isinstance(data, UuidData):
        return _uuid(data, tokenizer)
    from .prepare import prepare

    made = prepare(data, tokenizer, workers)
    return TrainingData(made.training, made.fingerprints, made.report, made.validation)


def _uuid(data: UuidData, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    from . import uuid

    pairs = uuid.make_pairs(data)
    samples = [uuid.encode(pair, tokenizer, data.loss_on) for pair in pairs]
    tokens = sum(len(s.input_ids) for s in samples)
    report = Report(
        sequences=len(samples),
        sequence_tokens=tokens,
        loss_tokens=sum(s.n_loss for s in samples),
        longest=max(len(s.input_ids) for s in samples),
    )
    report.documents["pairs"], report.tokens["pairs"] = len(pairs), tokens
    return TrainingData(samples, {"uuid_pairs": uuid.fingerprint(pairs)}, report, pairs=pairs)
