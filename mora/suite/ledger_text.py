"""The ledger in words: README's table of claims, and all evidence in results/claims.md."""

from __future__ import annotations

import math
from pathlib import Path

from mora.config.hardware_schema import ScaleName
from mora.config.source import ROOT
from mora.io import replace_file

from .claims import Claim, Ledger, load
from .contrasts import ResolvedTables
from .ledger import Outcome, all_outcomes, p_text, secondary_outcomes
from .sensitivity import again
from .verdicts import ALPHA, Verdict

PAGE, BEGIN, END = ROOT / "README.md", "<!-- claims:begin -->", "<!-- claims:end -->"
FULL = ROOT / "results" / "claims.md"

MEANING: dict[Verdict, str] = {
    "shown": "our results agree, on this model and at this scale",
    "equal": "the two are shown to differ by less than the margin, which was chosen so that three seeds can decide and is "
    "wider than most of the paper's differences",
    "contradicted": "our results, on this model and at this scale, say the opposite",
    "undecided": "the runs do not settle it",
    "floor": "scores are too near those of guessing to compare methods",
    "not run": "runs are missing",
}
DECIDED: tuple[Verdict, ...] = ("shown", "equal", "contradicted")


def table(resolved: ResolvedTables | None = None) -> str:
    """Return README's ledger: each claim at one scale."""
    resolved = resolved or ResolvedTables()
    lines = [
        "| the paper says | here | verdict | effect, ours | seeds, documents | effect, the paper's |",
        "|" + "---|" * 6,
    ]
    for claim, scale, outcome in _each_once(resolved):
        if outcome.verdict == "not run":
            lines.append(
                f"| {claim.says} ({claim.where}) | - | not run | - | - | {number_text(outcome.paper, claim)} |"
            )
            continue
        cells = [
            f"{claim.says} ({claim.where})",
            _compared(claim, scale, outcome),
            "; ".join([verdict_text(claim, outcome), *_at_other_scales(claim, scale, resolved)]),
            effect_text(claim, outcome),
            count_text(outcome),
            number_text(outcome.paper, claim),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _at_other_scales(claim: Claim, shown: ScaleName, resolved: ResolvedTables) -> list[str]:
    """Return what was decided on the claim at a scale that README does not show."""
    others = [(scale, o.verdict) for c, scale, o in all_outcomes(resolved) if c.says == claim.says and scale != shown]
    return [f"at scale {scale}: {verdict}" for scale, verdict in others if verdict in DECIDED]


def _compared(claim: Claim, scale: ScaleName, outcome: Outcome) -> str:
    if claim.ratio is not None:
        return f"{where(claim, scale, outcome)}: {outcome.first} / {outcome.second}"
    return f"{scale}: {outcome.first} - {outcome.second}"


def where(claim: Claim, scale: ScaleName, outcome: Outcome) -> str:
    """Return the scale and its model; for a ratio, the shape of the benchmark's model."""
    if claim.ratio is not None:
        return f"benchmark, shape of {outcome.model}"
    return f"{scale}, {outcome.model}"


def verdict_text(claim: Claim, outcome: Outcome) -> str:
    return "; ".join([f"**{outcome.verdict}**{within(claim, outcome)}", *outcome.notes])


def within(claim: Claim, outcome: Outcome) -> str:
    """Return the margin that a verdict on an equality rests on: ` within 3.5 points`."""
    if claim.test != "equal" or outcome.verdict in ("floor", "not run"):
        return ""
    return f" {'within' if outcome.verdict == 'equal' else 'at a margin of'} {claim.margin:g} {claim.unit}"


def effect_text(claim: Claim, outcome: Outcome) -> str:
    if outcome.effect is None or outcome.interval is None:
        return "-"
    low, high = outcome.interval
    span = "[?]" if math.isinf(low) else f"[{number_text(low, claim)}, {number_text(high, claim)}]"
    return f"{number_text(outcome.effect, claim)} {span} {claim.unit if claim.ratio is None else 'times'}"


def number_text(value: float | None, claim: Claim) -> str:
    if value is None:
        return "-"
    if claim.ratio is not None:
        return f"{value:.2f}"
    return f"{value:+.{ {'points': 1, 'nats': 3, 'values': 0}[claim.unit] }f}"


def count_text(outcome: Outcome) -> str:
    if not outcome.planned:
        return "-"
    n = str(outcome.seeds) if outcome.is_complete else f"{outcome.seeds} of {outcome.planned}"
    return f"{n}, {outcome.documents:,}" if outcome.documents else n


def page(resolved: ResolvedTables | None = None) -> str:
    """Return the full ledger: what is compared, on which model, and the contrasts that are not judged."""
    resolved = resolved or ResolvedTables()
    lines = [
        "# What the results say of the paper",
        "",
        *_preamble(load()),
    ]
    for claim, scale, outcome in all_outcomes(resolved):
        lines += ["", f"## {claim.says}", "", f"{claim.where}. {rule_text(claim, outcome)}"]
        if outcome.verdict == "not run":
            lines += ["", f"Not run; the paper's effect: {number_text(outcome.paper, claim)}."]
            continue
        lines += ["", "| scale, model | first | second | effect, ours | the paper's | seeds, documents | verdict |"]
        lines.append("|" + "---|" * 7)
        shown = [(outcome, verdict_text(claim, outcome))]
        shown += [
            (o, "; ".join(["not judged", *o.notes]))
            for o in secondary_outcomes(claim, scale, resolved)
            if o.verdict != "not run"
        ]
        for o, verdict in shown:
            columns = "" if o.columns == outcome.columns else f"; {', '.join(o.columns)}"
            cells = [f"{where(claim, scale, o)}{columns}", o.first, o.second, effect_text(claim, o)]
            lines.append(f"| {' | '.join([*cells, number_text(o.paper, claim), count_text(o), verdict])} |")
    return "\n".join([*lines, "", *_sensitivity(resolved)]) + "\n"


def _sensitivity(resolved: ResolvedTables) -> list[str]:
    lines = [
        "## How the verdicts depend on the variance",
        "",
        "Each claim that was judged, with its p-value after Holm's correction, by the rule and by other estimates of the",
        "variance of a seed's difference. **Bold**: it would decide, at 0.05 where no other level is named. The verdicts",
        "are the rule's; `docs/claims.md` discusses how they depend on it.",
        "",
    ]
    judged = again(resolved)
    ways = list(judged[0].ways) if judged else []
    lines += [f"| claim | {' | '.join(['scale', 'verdict', *ways])} |", "|" + "---|" * (3 + len(ways))]
    for each in judged:
        named = "" if each.level == ALPHA else f" (level {each.level:g})"
        cells = [f"{each.claim.says}{named}", each.scale, each.verdict]
        cells += [f"**{p_text(p)}**" if p <= each.level else p_text(p) for p in each.ways.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _preamble(ledger: Ledger) -> list[str]:
    fixed = ledger.fixed_by
    return [
        f"Contrasts and margins were fixed by commit {fixed.commit} (`git show {fixed.commit}:{fixed.file}`), second",
        f"looks by {fixed.second_looks}; today they are in `experiments/claims.yaml`. Rules: `docs/claims.md`.",
        "",
        "Effect: first minus second, or first over second for times. Intervals are not corrected for multiple tests:",
        "95% for an order, 90% for an equality or a closed gap (two one-sided tests at 5%); at a second look, whose",
        "level is 1%, 99% and 98%. Verdicts are corrected over each table by Holm's method, so an interval may exclude",
        "0 beside *undecided*. A contrast of other columns than the claim's names them behind its model.",
    ]


def summary(resolved: ResolvedTables | None = None) -> str:
    """Return how many claims have each verdict, and what the verdicts mean."""
    outcomes = [outcome for _, _, outcome in _each_once(resolved or ResolvedTables())]
    counts = {verdict: sum(outcome.verdict == verdict for outcome in outcomes) for verdict in MEANING}
    listed = [f"{n} {verdict}" for verdict, n in counts.items() if n]
    meanings = [f"*{verdict.capitalize()}*: {MEANING[verdict]}." for verdict, n in counts.items() if n]
    return (
        f"Of {len(outcomes)} claims, each at its largest complete scale, or, if none is, at the largest that was run: "
        f"{', '.join(listed)}. {' '.join(meanings)}"
    )


def _each_once(resolved: ResolvedTables) -> list[tuple[Claim, ScaleName, Outcome]]:
    """Return each claim at the largest scale whose planned seeds are all done; if there is none, at the largest run."""
    best: dict[str, tuple[Claim, ScaleName, Outcome]] = {}
    for row in all_outcomes(resolved):
        says, is_complete = row[0].says, row[2].is_complete
        if is_complete or says not in best or not best[says][2].is_complete:
            best[says] = row
    return list(best.values())


def rule_text(claim: Claim, outcome: Outcome) -> str:
    """Return the rule by which the claim counts as shown, over the columns that the scale has."""
    if claim.ratio is not None:
        return f"Shown if the time of the first over that of the second is at most {claim.ratio.at_most:g}."
    columns = outcome.columns or claim.columns
    over = f"{claim.unit}, {'mean over ' if len(columns) > 1 else ''}{', '.join(columns)}"
    rules = {
        "order": "the first is better",
        "equal": f"the two differ by less than {claim.margin:g}",
        "closes": f"the gap at the low rank is shown, and the first is at most {claim.margin:g} worse",
    }
    look = claim.second_look
    again = f" Judged a second time, with {look.seeds} seeds, at a level of {look.level:.0%}." if look else ""
    return f"Shown if {rules[claim.test]} ({over}).{again}"


def render(page_path: Path = PAGE, full: Path = FULL, resolved: ResolvedTables | None = None) -> None:
    """Write the ledger between the page's two markers, and in full to `full`. Raises ValueError if a marker is missing."""
    text, resolved = page_path.read_text(), resolved or ResolvedTables()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page_path.name}: expected the lines {BEGIN!r} and {END!r} once each")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    replace_file(page_path, f"{head}{BEGIN}\n{summary(resolved)}\n\n{table(resolved)}\n{END}{tail}")
    replace_file(full, page(resolved))
