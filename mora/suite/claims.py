"""Claims: sentences of the paper, the one contrast that decides each, and how likely the planned runs are to do so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mora.config.hardware_schema import SCALES, ScaleName
from mora.config.yaml_file import read_yaml
from mora.frozen import FrozenModel

from . import experiments, verdicts
from .cell_specs import CellSpec
from .experiments import Row
from .verdicts import Design, Test

CLAIMS = experiments.FOLDER / "claims.yaml"
WEAK = f"UNDER {verdicts.ENOUGH}"
COMPARED: tuple[ScaleName, ...] = tuple(scale for scale in SCALES if scale != "smoke")

Unit = Literal["points", "nats", "values"]


class Times(FrozenModel):
    """The time of the case `slow` over that of the case `fast`, two names of the step benchmark."""

    slow: str
    fast: str


class Ratio(Times):
    """A ratio that is judged. `paper` is the paper's; those in `also` are shown beside it and not judged."""

    shape: str
    at_most: float
    paper: float
    also: list[Times] = []


class Contrast(FrozenModel):
    """The row `first` minus the row `second`. If `columns` are given, they replace the claim's."""

    first: Row
    second: Row
    columns: list[str] | None = None


class Plan(FrozenModel):
    """The assumptions behind the power of a claim, in its unit. `seed_sd` is None if it is not known."""

    effect: float
    seed_sd: float | None = None
    document_se: float = 0.0


class SecondLook(FrozenModel):
    """More seeds (`seeds` in all) for a claim that was undecided when judged: it is judged once more, at this `level`."""

    seeds: int
    level: float
    plan: Plan


class Claim(FrozenModel):
    """A claim of experiments/claims.yaml, whose first lines describe the fields."""

    says: str
    where: str
    experiment: str = ""
    columns: list[str] = []
    first: Row | None = None
    second: Row | None = None
    gap: Row | None = None
    test: Test = "order"
    margin: float = 0.0
    unit: Unit = "points"
    plan: Plan = Plan(effect=0.0)
    also: list[Contrast] = []
    second_look: SecondLook | None = None
    ratio: Ratio | None = None

    def look(self, seeds: int) -> SecondLook | None:
        """Return the second look if that many planned seeds are enough for it, else None."""
        return self.second_look if self.second_look is not None and seeds >= self.second_look.seeds else None

    def level(self, seeds: int) -> float:
        """Return the largest corrected p-value that decides the claim when that many seeds are planned."""
        return look.level if (look := self.look(seeds)) else verdicts.ALPHA

    @property
    def primary(self) -> Contrast:
        """The contrast that is judged. A claim about a ratio has none."""
        return Contrast.model_validate({"first": self.first, "second": self.second})


class Fixed(FrozenModel):
    """The commit that fixed contrasts and margins, the file that held them, and the commit that added second looks."""

    commit: str
    file: str
    second_looks: str


class Ledger(FrozenModel):
    """All claims, and the commits that show when they were written down."""

    fixed_by: Fixed
    claims: list[Claim]


def load() -> Ledger:
    return Ledger.model_validate(read_yaml(CLAIMS))


def power_of(claim: Claim, table: Sequence[Claim], seeds: int) -> float:
    """Return the power of the claim's test with that many seeds, if all claims of the table are judged together.

    A gap can be closed only if it is shown, too. Its power is that of the claim of the table which states the gap as an
    order, and the power of both together is at least the sum of the two less 1. If no claim states it, nothing is planned.
    """
    plan = look.plan if (look := claim.look(seeds)) else claim.plan
    design = Design(plan.effect, plan.seed_sd, plan.document_se, seeds, len(table), claim.level(seeds))
    power = verdicts.power(claim.test, design, claim.margin)
    if claim.test != "closes":
        return power
    gap = (claim.second, claim.gap, claim.columns)
    stated = [c for c in table if c.test == "order" and (c.first, c.second, c.columns) == gap]
    return max(0.0, power + max((power_of(c, table, seeds) for c in stated), default=0.0) - 1)


def is_cell(spec: CellSpec, wanted: Row, column: str) -> bool:
    """Return whether the cell is in the column, and its row, without settings, has the method, operator and paper's rank."""
    if spec.row.settings or spec.column.name != column or not spec.exists:
        return False
    rank = spec.row.r and spec.config.model.stands_for(spec.row.r)
    return (spec.row.method, spec.row.operator, rank) == (wanted.method, wanted.operator, wanted.r)


def _judged_by(claim: Claim, cells: Sequence[CellSpec]) -> bool:
    """Return whether one of the cells is in the claim's contrast."""
    rows = [row for row in (claim.first, claim.second, claim.gap) if row]
    return any(is_cell(spec, row, column) for spec in cells for row in rows for column in claim.columns)


def plan_lines(
    name: str, scale: ScaleName, seeds: list[int] | None = None, cells: Sequence[CellSpec] | None = None
) -> list[str]:
    """Return one line per claim on this experiment, with its power at the planned number of seeds.

    If only some of the experiment's cells are asked for, the claims are those that one of these `cells` is judged for.
    """
    table = [claim for claim in load().claims if claim.experiment == name]
    at = experiments.load(name).scales.get(scale)
    if at is None or scale not in COMPARED:
        return []
    more = any(row.more_seeds for row in at.rows)
    lines = []
    for claim in table:
        if cells is not None and not _judged_by(claim, cells):
            continue
        n = claim.second_look.seeds if claim.second_look and more and not seeds else len(seeds or at.seeds)
        power = power_of(claim, table, n)
        plan = f"a difference of {claim.plan.effect:g}" if claim.test == "order" else f"a margin of {claim.margin:g}"
        weak = "" if power >= verdicts.ENOUGH else f"; {WEAK}: these runs will probably not decide it"
        lines.append(f"power {power:.2f} at {n} seed{'s' * (n > 1)}, {plan} {claim.unit}: {claim.says}{weak}")
    return lines
