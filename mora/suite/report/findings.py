"""The claims as the page shows them: a line each, with where its marks stand, and the runs that are its evidence."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

from mora.config.run_id import run_id

from .. import experiment as experiments
from .. import ledger
from ..claims import Claim, load
from ..contrasts import ResolvedTables, measure
from ..experiment import Scale
from ..ledger import Outcome
from .gather import number_of

LINE = 62  # letters of a line beside a print figure


@dataclass
class Finding:
    """A claim at a scale. `extent`: how far its axis, which the claims of an experiment share, reaches from its centre."""

    number: int
    claim: Claim
    scale: Scale
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
        return ledger.effect_text(self.claim, self.outcome)

    @property
    def paper(self) -> str:
        return ledger.number_text(self.outcome.paper, self.claim)

    def text(self, outcome: Outcome) -> str:
        """Return the effect of this contrast, or of one beside it, as text."""
        return ledger.effect_text(self.claim, outcome)

    def paper_of(self, outcome: Outcome) -> str:
        return ledger.number_text(outcome.paper, self.claim)

    @property
    def rule(self) -> str:
        return ledger.rule_text(self.claim, self.outcome)

    @property
    def n(self) -> str:
        """`3 seeds`, `1 of 3 seeds`."""
        o = self.outcome
        if not o.planned:
            return "not run" if o.verdict == "not run" else "benchmark"
        return f"{o.seeds} seeds" if o.seeds >= o.planned else f"{o.seeds} of {o.planned} seeds"

    @property
    def heading(self) -> str:
        """What the claim says and its verdict, in lines of at most LINE letters."""
        verdict = f"{self.outcome.verdict}, {self.scale}, {self.n}"
        if len(self.claim.says) <= LINE:
            return f"{self.claim.says}\n{verdict}"
        return textwrap.fill(f"{self.claim.says}: {verdict}", LINE, break_on_hyphens=False)

    def at(self, value: float | None) -> float | None:
        """Return the value in percent of the axis, kept within it; None if there is nothing to show."""
        if value is None or math.isnan(value):
            return None
        return round(50 + 48 * max(-1.0, min(1.0, (value - self.centre) / self.extent)), 2)

    @property
    def label(self) -> str:
        """The text of the marks for screen readers."""
        if self.outcome.effect is None:
            return f"not run here; the paper's effect: {self.paper}"
        return f"ours {self.effect}; the paper's {self.paper}; {self.outcome.verdict}"


def of_claims(resolved: ResolvedTables) -> list[Finding]:
    """Return every claim at every scale at which something was run; a claim without any, once, as not run."""
    claims = load().claims
    findings = []
    for claim, scale, outcome in ledger.rows_of(resolved):
        number = claims.index(claim) + 1
        also = [o for o in ledger.also(claim, scale, resolved) if o.verdict != "not run"]
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


def _runs(resolved: ResolvedTables, claim: Claim, scale: Scale) -> dict[str, list[str]]:
    """Return the runs of both rows of the primary contrast, by the row's label."""
    if not claim.experiment:
        return {}
    rows = resolved.rows(claim.experiment, scale)
    measured = measure(claim, claim.primary, rows)
    evidence: dict[str, list[str]] = {}
    for side in (measured.first, measured.second):
        for runs in side.cells if side else []:
            names = evidence.setdefault(runs.spec.label, [])
            names += [name for config, _ in runs.results if (name := run_id(config)) not in names]
    return {label: names for label, names in evidence.items() if names}
