"""The names of all experiments, and the cells of each at each scale."""

from mora.suite import experiments
from mora.suite.cell_specs import CellSpec, cell_specs

NAMES = experiments.names()
TABLES = [f"table{n}" for n in (1, 2, 3, 4, 6, 7)]
CELLS = [(name, scale) for name in NAMES for scale in experiments.load(name).scales]


def cells_of(name, scale) -> list[CellSpec]:
    return [spec for row in cell_specs(experiments.load(name), scale) for spec in row]
