import pytest
import yaml

from mora.config import ConfigError, compose, run_id
from mora.config.compose import CONFIG_DIR, load
from mora.suite import experiment as experiments
from mora.suite.experiment import Grid


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task=nothing", "method=mora", "r=8"], "Could not find 'task/nothing'"),
        (["task=uuid", "method=nothing"], "Could not find 'method/nothing'"),
        (["method=mora", "r=8"], "You must specify 'task'"),
        (["task=uuid", "method=mora"], "r is missing"),
        (["task=uuid", "method=mora", "r=0"], "r=0: input should be greater than 0"),
        (["task=uuid", "method=fft", "r=8"], "r=8: method fft has no rank"),
        (["task=uuid", "method=none", "r=8"], "r=8: method none has no rank"),
        (["task=uuid", "method=none", "lr=1e-4"], "trains nothing"),
        (["task=uuid", "method=mora", "r=8", "rr=1"], "Could not override 'rr'"),
        (["task=uuid", "method=mora", "r=8", "+task.train.epoch=1"], "task.train.epoch: there is no such field"),
        (["task=uuid", "method=mora", "r=8", "task.train.epochs=many"], "task.train.epochs='many'"),
        (["task=uuid", "method=mora", "r=8", "lr=-1"], "lr=-1: input should be greater than 0"),
        (["task=uuid", "method=mora", "r=8", "method.adapter.operator=twist"], "operator='twist': input should be"),
        (["task=uuid", "method=mora", "r=8", "hardware.micro_batch_size=7"], "is not divisible by"),
        (["task=uuid", "method=mora", "r=8", "hardware=cpu2", "hardware.micro_batch_size=8"], "=8 x 2 ranks: choose"),
        (["task=uuid", "method=mora", "r=8", "hardware=cpu2", "hardware.parallel=none"], "2 ranks need ddp"),
        (["task=uuid", "method=mora", "r=8", "hardware=cpu2", "hardware.nodes=2"], "set hardware.rendezvous=HOST:PORT"),
        (["task=uuid", "method=relora", "r=8", "method.restart.every_steps=1000"], "would never restart; lower it"),
        (["task=uuid", "method=relora", "r=8", "method.restart.every_steps=50"], "leaves no step at the full rate"),
        (
            ["task=uuid", "method=remora", "r=8", "+task.restart_every_steps=500", "method.adapter.groups=contiguous"],
            "expected [contiguous, ...]",
        ),
        (["task=uuid", "method=mora", "r=8", "task.data.pairs=10"], "task.data.pairs=10 is less than"),
        (["task=uuid", "method=mora", "r=8", "task.train.warmup_steps=5000"], "the run has only 1000 steps"),
    ],
)
def test_bad_input_is_refused_in_one_line(overrides, expected):
    with pytest.raises(ConfigError) as error:
        compose(overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_typo_in_any_yaml_is_refused(path):
    group, name = path.parent.name, path.stem
    chosen = {"task": "uuid", "method": "mora", "scale": "smoke", group: name}
    if group == "overlay":
        scale, task = name.split("_")
        chosen = {"task": task, "method": "mora", "scale": scale}
    overrides = [f"{k}={v}" for k, v in chosen.items() if k != "overlay"]
    if chosen["method"] not in ("fft", "none"):
        overrides.append("r=8")
    values = compose(overrides).model_dump()
    top = "task" if group == "overlay" else group
    values[top]["a_typo"] = 1
    with pytest.raises(ConfigError, match=rf"{top}\.a_typo: there is no such field"):
        load(values)


def test_every_cell_of_every_experiment_composes_at_every_scale():
    count = 0
    for name in experiments.names():
        experiment = experiments.load(name)
        for scale, at_scale in experiment.scales.items():
            for row in at_scale.rows:
                grid = Grid(experiment, scale, row)
                assert grid.config().scale.name == scale
                for config in grid.search():
                    assert config.lr in config.lr_grid()
                count += 1
    assert count > 30


def test_without_lr_the_first_of_the_grid_is_taken():
    assert compose(["task=uuid", "method=lora", "r=8"]).lr == 1e-4
    assert compose(["task=uuid", "method=mora", "r=8"]).lr == 5e-5
    assert compose(["task=uuid", "method=none"]).lr is None


@pytest.mark.parametrize(
    ("scale", "r", "alpha"), [("paper", 8, 16), ("paper", 256, 128), ("lite", 1, 2), ("lite", 32, 16), ("lite", 8, 4)]
)
def test_lora_alpha_follows_the_rank_that_r_stands_for(scale, r, alpha):
    assert compose(["task=uuid", "method=lora", f"r={r}", f"scale={scale}"]).lora_alpha() == alpha


def test_the_paper_scale_trains_a_thousand_steps():
    assert compose(["task=uuid", "method=fft"]).total_steps == 1000


def test_run_ids_depend_on_what_changes_the_result_and_on_nothing_else():
    base = ["task=uuid", "method=mora", "r=8", "scale=smoke"]
    name = run_id(compose(base))
    for same in (["hardware=cpu"], ["hardware.micro_batch_size=4"], ["task.train.log_every_steps=3"], ["lr=1e-2"]):
        assert run_id(compose(base + same)) == name
    for other in (
        ["seed=1"],
        ["lr=2e-2"],
        ["r=4"],
        ["task.data.seed=1"],
        ["method.adapter.pad=zeros"],
        ["model.init_seed=1"],
    ):
        assert run_id(compose(base + other)) != name


def test_a_written_config_loads_as_the_same_run():
    config = compose(["task=uuid", "method=lora", "r=8", "scale=lite"])
    assert load(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
