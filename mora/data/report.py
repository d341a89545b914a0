"""Counts of what a preparation made. They are printed, and kept in the result."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """Counters over a data set. A kind is a part of the mix; `questions` counts the types of reading comprehension."""

    documents: Counter[str] = field(default_factory=Counter)  # kind -> number of rows used
    tokens: Counter[str] = field(default_factory=Counter)  # kind -> number of tokens used
    questions: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> number of rows left out
    notes: Counter[str] = field(default_factory=Counter)  # what was done to rows that were kept -> their number
    sequences: int = 0
    sequence_tokens: int = 0
    loss_tokens: int = 0
    longest: int = 0

    def __add__(self, other: Report) -> Report:
        counters = ("documents", "tokens", "questions", "dropped", "notes")
        summed: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in counters}
        return Report(**summed)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(self).items()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Report:
        """Return the report whose `as_dict` these values are."""
        plain: dict[str, Any] = {k: Counter(v) if isinstance(v, dict) else v for k, v in values.items()}
        return Report(**plain)

    def text(self, name: str) -> str:
        """Return the report as text for the terminal, headed by `name`."""
        total = max(1, sum(self.tokens.values()))
        lines = [
            f"{name}: {sum(self.documents.values()):,} documents -> {self.sequences:,} sequences of up to "
            f"{self.longest:,} tokens, {self.sequence_tokens:,} tokens, {self.loss_tokens:,} with a loss"
        ]
        for kind, count in self.documents.most_common():
            tokens = self.tokens[kind]
            lines.append(f"  {kind:<24} {count:>12,} documents {tokens:>15,} tokens {100 * tokens / total:6.1f}%")
        total = sum(self.questions.values())
        for kind, count in self.questions.most_common():
            lines.append(f"  questions: {kind:<24} {count:>12,} {100 * count / total:6.1f}%")
        for reason, count in self.dropped.most_common():
            lines.append(f"  dropped: {reason}: {count:,}")
        for reason, count in self.notes.most_common():
            lines.append(f"  note: {reason}: {count:,}")
        return "\n".join(lines)
