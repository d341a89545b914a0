"""The claims as the page shows them: one line each, with the places of its marks and the runs that are its evidence."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

from mora.config.hardware_schema import ScaleName
from mora.config.run_id import run_id

from .. import experiments, ledger, ledger_text
from ..claims import Claim, load
from ..contrasts import ResolvedTables
from ..experiments import number_of
from ..ledger import Outcome
from ..verdicts import Interval

LINE = 60  # letters per line beside a print figure


@dataclass
class Finding:
    """A claim at a scale. `extent` is the half-length of its axis, which all claims of an experiment share."""

    number: int
    claim: Claim
    scale: ScaleName
    outcome: Outcome
    also: list[Outcome]
    runs: dict[str, list[str]]
    extent: float = 1.0
    notes: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return f"claim-{self.number}-{self.scale}"

    @property
    def source(self) -> str:
        """`Table 2`; for a ratio, the benchmark."""
        return number_of(self.claim.experiment) if self.claim.experiment else "Step benchmark"

    @property
    def title(self) -> str:
        """The title of the axis."""
        return experiments.load(self.claim.experiment).title if self.claim.experiment else "Time of a step, benchmark"

    @property
    def unit(self) -> str:
        return self.claim.unit if self.claim.ratio is None else "times"

    @property
    def centre(self) -> float:
        return 0.0 if self.claim.ratio is None else 1.0

    @property
    def effect(self) -> str:
        return ledger_text.effect_text(self.claim, self.outcome)

    @property
    def paper(self) -> str:
        return ledger_text.number_text(self.outcome.paper, self.claim)

    def text(self, outcome: Outcome) -> str:
        """Return the effect of the claim's contrast, or of one shown beside it, as text."""
        return ledger_text.effect_text(self.claim, outcome)

    def paper_of(self, outcome: Outcome) -> str:
        return ledger_text.number_text(outcome.paper, self.claim)

    @property
    def rule(self) -> str:
        return ledger_text.rule_text(self.claim, self.outcome)

    @property
    def n(self) -> str:
        """`3 seeds`, `1 of 3 seeds`."""
        o = self.outcome
        if not o.planned:
            return "not run" if o.verdict == "not run" else "benchmark"
        return f"{o.seeds} seeds" if o.seeds >= o.planned else f"{o.seeds} of {o.planned} seeds"

    @property
    def where(self) -> str:
        return ledger_text.where(self.claim, self.scale, self.outcome)

    @property
    def panel(self) -> str:
        """The table and the model; for a ratio, the benchmark."""
        return f"{self.source}; {self.where}" if self.claim.ratio is None else self.where.capitalize()

    @property
    def contrast(self) -> str:
        """`MoRA - LoRA, r=4 (the paper's 8)`; a rank that both rows share is named once."""
        o = self.outcome
        if self.claim.ratio is not None:
            return f"{o.first} / {o.second}"
        if len(o.ranks) != 1:
            return f"{o.first} - {o.second}"
        first, second = (name.replace(f" {o.ranks[0]}", "") for name in (o.first, o.second))
        return f"{first} - {second}, {o.ranks[0]}"

    @property
    def heading(self) -> str:
        """What the claim says, then its verdict and what was compared, in lines of at most LINE letters."""
        o = self.outcome
        within = f" within {self.claim.margin:g}" if o.verdict == "equal" else ""
        n = f", {self.n}" if o.planned else ""
        parts = (self.claim.says, f"{o.verdict}{within}: {self.contrast}{n}")
        return "\n".join(map(_in_lines, parts))

    @property
    def bar(self) -> float:
        """The number that separates the effects that agree with the paper from those that do not."""
        return 0.0 if self.claim.ratio is None else self.claim.ratio.at_most

    @property
    def band(self) -> Interval | None:
        """The differences within the claim's margin; None if it has none."""
        margin = self.claim.margin
        return None if not margin else Interval(-margin, margin if self.claim.test == "equal" else 0.0)

    def at(self, value: float | None) -> float | None:
        """Return the value's place in percent of the axis, clamped to its ends; None if there is nothing to show."""
        if value is None or math.isnan(value):
            return None
        return round(50 + 48 * max(-1.0, min(1.0, (value - self.centre) / self.extent)), 2)

    @property
    def label(self) -> str:
        """A text for screen readers that stands for the marks."""
        if self.outcome.effect is None:
            return f"not run here; the paper's effect: {self.paper}"
        return f"ours {self.effect}; the paper's {self.paper}; {self.outcome.verdict}"


def _in_lines(text: str) -> str:
    """Break the text into lines of about equal length, as few as lines of LINE letters allow."""
    lines = math.ceil(len(text) / LINE)
    return textwrap.fill(text, LINE if lines == 1 else min(LINE, len(text) // lines + 8), break_on_hyphens=False)


def of_claims(resolved: ResolvedTables) -> list[Finding]:
    """Return every claim at every scale at which it was run; a claim that was run at none, once, as not run."""
    claims = load().claims
    findings = []
    for claim, scale, outcome in ledger.all_outcomes(resolved):
        number = claims.index(claim) + 1
        also = [o for o in ledger.secondary_outcomes(claim, scale, resolved) if o.verdict != "not run"]
        findings.append(Finding(number, claim, scale, outcome, also, _runs(resolved, claim, scale)))
    _set_extents(findings)
    return findings


def _set_extents(findings: Iterable[Finding]) -> None:
    reach: dict[str, float] = {}
    for f in findings:
        o = f.outcome
        values = [o.effect, o.paper, *(o.interval or ())]
        known = [abs(v - f.centre) for v in values if v is not None and math.isfinite(v)]
        reach[f.source] = max([reach.get(f.source, 0.0), *known])
    for f in findings:
        f.extent = reach[f.source] or 1.0


def _runs(resolved: ResolvedTables, claim: Claim, scale: ScaleName) -> dict[str, list[str]]:
    """Return the runs of both rows of the primary contrast, by the row's label."""
    if not claim.experiment:
        return {}
    measured = resolved.measured(claim, claim.primary, scale)
    evidence: dict[str, list[str]] = {}
    for side in (measured.first, measured.second):
        for runs in side.cells if side else []:
            names = evidence.setdefault(runs.spec.label, [])
            names += [name for config, _ in runs.results if (name := run_id(config)) not in names]
    return {label: names for label, names in evidence.items() if names}
