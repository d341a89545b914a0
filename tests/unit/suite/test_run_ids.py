"""Results are found by their run ids: whatever is moved or renamed, every cell composes to the id that it had."""

from pathlib import Path

from mora.config import compose, run_id
from mora.config.load import load
from mora.suite import experiments
from mora.suite.cell_specs import cell_specs

GOLDEN = Path(__file__).with_name("run_ids.txt")


def test_every_cell_keeps_its_run_id():
    """`run_ids.txt`: of each cell of each table and figure, at each scale, its run at the default learning rate and seed 0,
    and its search runs. Cells may be added; a line leaves the file with its cell, or where RESULT_VERSION was raised."""
    loaded = [experiments.load(name) for name in experiments.names()]
    cells = [cell for one in loaded for scale in one.scales for row in cell_specs(one, scale) for cell in row]
    ids = {run_id(run) for cell in cells if cell.exists for run in (cell.config, *cell.search_runs)}
    lost = sorted({*GOLDEN.read_text().split()} - ids)
    assert lost == []
    assert len(ids) > 1000


def test_other_tokens_at_the_ends_of_texts_are_another_run():
    words = ["task=tulu2", "method=lora", "r=4", "lr=1e-3", "scale=mid"]
    ends = ("null", "{bos: null, eos: '<|im_end|>'}", "{bos: '<|im_start|>', eos: '<|im_start|>'}")  # last, SmolLM2's
    ids = {run_id(compose([*words, *(f"model.text_ends={one}" for one in some)])) for some in ((), *zip(ends))}
    assert len(ids) == 4
    named_by_default = compose(words)
    earlier = named_by_default.model_dump(mode="json")
    del earlier["model"]["text_ends"]
    assert run_id(load(earlier)) == run_id(named_by_default)
