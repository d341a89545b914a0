import subprocess
import sys
from typing import get_args

import hydra
import pytest
import yaml

from mora.config import ConfigError, compose, hints, run_id
from mora.config.hardware_schema import SCALES, ScaleName
from mora.config.hydra_compose import check_sweep
from mora.config.load import load
from mora.config.source import CONFIG_DIR, ROOT

PADDING_FREE = ["hardware.padding_free=true", "hardware.micro_batch_tokens=512"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task=nothing", "method=mora", "r=8"], "task=nothing: there is no such task; there are biomed, c4"),
        (["task=c4", "method=fft", "scale=mid"], "scale=mid: task c4 has no such scale; it has lite, paper, smoke"),
        (["task=uuid/lite", "method=fft"], "task=uuid/lite: there is no such task; there are biomed, c4"),
        (["task=uuid", "method=fft", "scale=large"], "scale=large: there is no such scale; there are lite, mid, paper"),
        (["task=uuid", "method=nothing"], "method=nothing: there is no such method; there are asylora"),
        (["task=uuid", "method=${lr}", "r=8"], "method=${lr}: expected a name; there are"),
        (["task=uuid", "method=mora", "r=8", "model=custom", f"model.path={'x' * 5000}"], "model.path='xxx"),
        (["method=mora", "r=8"], "task is missing: expected task=NAME; there are biomed, c4, "),
        (["task=uuid", "method=mora"], "r is missing"),
        (["task=uuid", "method=mora", "r=0"], "r=0: input should be greater than 0"),
        (["task=uuid", "method=fft", "r=8"], "r=8: method fft has no rank"),
        (["task=uuid", "method=none", "r=8"], "r=8: method none has no rank"),
        (["task=uuid", "method=none", "lr=1e-4"], "trains nothing"),
        (["task=uuid", "method=mora", "r=8", "rr=1"], "Could not override 'rr': there is no such field"),
        (["task=uuid", "method=mora", "r=8", "+task.train.epoch=1"], "task.train.epoch: there is no such field"),
        (["task=uuid", "method=mora", "r=8", "task.train.epochs=many"], "task.train.epochs='many'"),
        (["task=uuid", "method=mora", "r=8", "lr=-1"], "lr=-1: input should be greater than 0"),
        (["task=uuid", "method=mora", "r=8", f"seed={10**13}"], f"seed={10**13}: input should be less than or"),
        (
            ["task=c4", "scale=smoke", "method=mora", "r=8", f"model.init_seed={2**64}"],
            f"seed={2**64}: input should be",
        ),
        (["task=biomed", "method=mora", "r=8", "task.data.seed=-1"], "task.data.seed=-1: input should be greater"),
        (["task=uuid", "method=mora", "r=8", "lr=inf"], "lr=inf: input should be a finite number"),
        (["task=uuid", "method=mora", "r=8", "task.train.adam_eps=nan"], "adam_eps=nan: input should be a finite"),
        (["task=uuid", "method=mora", "r=true"], "r=True: expected no truth value"),
        (["task=uuid", "method=mora", "r=8", "seed=false"], "seed=False: expected no truth value"),
        (["task=uuid", "method=mora", "r=8", "task.train.max_grad_norm=true"], "max_grad_norm=True: expected no truth"),
        (
            ["task=uuid", "method=mora", "r=8", "method.adapter.operator=twist"],
            "method.adapter.operator='twist': input should be",
        ),
        (
            ["task=tulu2", "method=mora", "r=8", "task.data.corpus.sources=[{kind: files, format: x}]"],
            "task.data.corpus.sources.0.files is missing; task.data.corpus.sources.0.format='x': input should",
        ),
        (["task=uuid", "method=mora", "r=8", "hardware.micro_batch_size=7"], "is not divisible by"),
        (["task=uuid", "method=mora", "r=8", "hardware=cpu2", "hardware.micro_batch_size=8"], "=8 x 2 ranks: choose"),
        (
            ["task=uuid", "method=fft", "hardware.micro_batch_size=8", "hardware.micro_batch_tokens=512"],
            "hardware.micro_batch_size=8 and hardware.micro_batch_tokens=512: set one",
        ),
        (["task=uuid", "method=fft", "hardware.padding_free=true"], "how many tokens may a row have"),
        (
            ["task=uuid", "method=fft", *PADDING_FREE, "hardware.gradient_checkpointing=true"],
            "hardware.padding_free=false or hardware.gradient_checkpointing=false",
        ),
        (["task=tulu2", "method=fft", *PADDING_FREE, "task.data.packing=isolated"], "the sequences are packed already"),
        (["task=uuid", "method=mora", "r=8", "hardware=cpu2", "hardware.parallel=none"], "2 ranks need ddp"),
        (["task=uuid", "method=mora", "r=8", "hardware=cpu2", "hardware.nodes=2"], "set hardware.rendezvous=HOST:PORT"),
        (["task=uuid", "method=relora", "r=8", "method.restart.every_steps=1000"], "would never restart; lower it"),
        (
            ["task=uuid", "method=relora", "r=8", "method.restart.every_steps=50", "method.restart.warmup_steps=50"],
            "leaves no step at the full rate",
        ),
        (
            ["task=uuid", "method=remora", "r=8", "+task.restart_every_steps=500", "method.adapter.groups=contiguous"],
            "expected [contiguous, ...]",
        ),
        (
            ["task=uuid", "method=mora", "r=8", "scale=smoke", "model.path=/no"],
            "model: path='/no': tiny draws its weights",
        ),
        (["task=uuid", "method=mora", "r=8", "model.path=null"], "model: path=null: expected the folder or hub id"),
        (["task=uuid", "method=mora", "r=8", "task.data.pairs=10"], "task.data.pairs=10 is less than"),
        (["task=uuid", "method=mora", "r=8", "task.train.warmup_steps=5000"], "the run has only 1000 steps"),
    ],
)
def test_bad_input_is_refused_in_one_line(overrides, expected):
    with pytest.raises(ConfigError) as error:
        compose(overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


RUNS = sorted(
    p for p in CONFIG_DIR.rglob("*/*.yaml") if p.parent.name not in ("sweep", "launcher")
)  # sweeps are Hydra's, no part of a run


@pytest.mark.parametrize("path", RUNS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_typo_in_any_yaml_is_refused(path, tmp_path):
    group, name = path.parent.name, path.stem
    chosen = {"task": "uuid", "method": "mora", "scale": "smoke", group: name}
    at_scale = path.parent.parent.name == "task"
    if at_scale:
        chosen = {"task": group, "method": "mora", "scale": name}
    overrides = [f"{k}={v}" for k, v in chosen.items()]
    if chosen["method"] == "peft":
        (file := tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA"}')
        overrides.append(f"method.config={file}")
    if path.stem == "custom":
        overrides.append("model.path=some/model")
    try:
        values = compose([*overrides, "r=8"]).model_dump()
    except ConfigError:  # the method has no rank
        values = compose(overrides).model_dump()
    top = "task" if at_scale else group
    values[top]["a_typo"] = 1
    with pytest.raises(ConfigError, match=rf"{top}\.a_typo: there is no such field"):
        load(values)


@pytest.mark.parametrize(
    ("sweep", "task", "expected"),
    [
        ("lr", "biomed", {"lr": "0.0003,0.0004"}),
        ("lora_plus", "metamath", {"lr": "0.0001,0.0002", "method.adapter.lr_ratio": "2.0,4.0"}),
        ("relora", "metamath", {"lr": "0.0001,0.0002", "method.restart.every_steps": "1000,2000"}),
    ],
)
def test_a_sweep_hands_hydra_the_grid_of_the_task_and_method(sweep, task, expected):
    method = "lora" if sweep == "lr" else sweep
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = [f"task={task}/paper", f"method={method}", "r=256", f"sweep={sweep}"]
        composed = hydra.compose("config", overrides=overrides, return_hydra_config=True)
    assert dict(composed.hydra.sweeper.params) == expected


@pytest.mark.parametrize(
    "several", ["method=lora,mora", "r=8,256", "task=uuid,metamath", "scale=lite,paper", "r=choice(8,256)"]
)
@pytest.mark.parametrize("sweep", ["lr", "lora_plus"])
def test_a_sweep_over_rates_of_several_grids_is_refused(several, sweep):
    given = {"task": "metamath", "method": "lora_plus", "r": "8"} | dict([several.split("=")])
    with pytest.raises(ConfigError) as refused:
        check_sweep(["-m", f"sweep={sweep}", *(f"{key}={value}" for key, value in given.items())])
    assert str(refused.value) == (
        f"{several}: expected one value beside sweep=, whose rates depend on it; "
        "give one task, method, r and scale per call"
    )


def test_what_else_is_swept_over_goes_with_a_grid():
    check_sweep(
        ["-m", "sweep=lr", "task=metamath", "method=lora", "r=8", "seed=0,1", "task.data.packing=isolated,none"]
    )
    check_sweep(["-m", "task=uuid", "method=lora,mora", "r=8,256"])


def test_without_lr_the_first_of_the_grid_is_taken():
    assert compose(["task=uuid", "method=lora", "r=8"]).lr == 2e-4
    assert compose(["task=uuid", "method=mora", "r=8"]).lr == 1e-4
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
    for same in (
        ["hardware=cpu"],
        ["hardware.micro_batch_size=4"],
        ["task.train.log_every_steps=3"],
        ["lr=1e-2"],
    ):
        assert run_id(compose(base + same)) == name
    read = ["task=uuid", "method=mora", "r=8", "scale=lite"]
    assert run_id(compose([*read, "model.path=x"])) == run_id(compose(read))
    for other in (
        ["seed=1"],
        ["lr=2e-2"],
        ["r=4"],
        ["task.data.seed=1"],
        ["method.adapter.pad=zeros"],
        ["model.init_seed=1"],
        ["model.revision=another"],
    ):
        assert run_id(compose(base + other)) != name


@pytest.mark.parametrize(
    ("overrides", "every", "warmup"),
    [
        (["task=metamath", "r=8"], 2000, 50),
        (["task=metamath", "r=8", "method.restart.every_steps=1000"], 1000, 50),
        (["task=metamath", "r=32", "scale=lite"], 250, 12),
        (["task=biomed", "r=32", "scale=lite"], 100, 5),
        (["task=c4", "r=128", "scale=lite"], 400, 10),
    ],
)
def test_a_restart_warms_up_for_the_papers_share_of_its_interval(overrides, every, warmup):
    restart = compose([*overrides, "method=relora"]).method.restart
    assert (restart.every_steps, restart.warmup_steps) == (every, warmup)
    assert 0.025 <= warmup / every <= 0.05


def test_runs_of_before_a_field_was_there_keep_their_ids():
    memory = ["task=uuid", "method=mora", "r=1", "lr=3e-2", "scale=lite", "task.train.stop_step=300"]
    assert run_id(compose(memory)) == "uuid-mora-r1-lr3e-2-s0-d5a4a82489"
    pretraining = ["task=c4", "method=lora", "r=128", "lr=2e-3", "scale=lite"]
    assert run_id(compose(pretraining)) == "c4-lora-r128-lr2e-3-s0-fc28930487"
    assert run_id(compose([*memory, "task.train.shorten_by=3"])) != run_id(compose(memory))
    assert run_id(compose([*memory, "task.evaluation.merge=false"])) != run_id(compose(memory))


@pytest.mark.parametrize("overrides", [["method=fft"], ["method=lora", "r=8", "task.evaluation.tasks=[]"]])
def test_where_nothing_is_merged_it_is_no_part_of_the_id(overrides):
    run = ["task=uuid", "lr=1e-3", "scale=lite", *overrides]
    assert run_id(compose([*run, "task.evaluation.merge=false"])) == run_id(compose(run))


def test_a_written_config_loads_as_the_same_run():
    config = compose(["task=uuid", "method=lora", "r=8", "scale=lite"])
    assert load(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("overrides", "model"),
    [
        (["task=c4"], "llama_250m"),
        (["task=c4", "model=llama_1b3"], "llama_1b3"),
        (["task=c4", "scale=lite"], "llama_60m_smollm2"),
        (["task=c4", "scale=smoke"], "tiny"),
        (["task=metamath"], "llama2_7b"),
        (["task=metamath", "scale=lite"], "smollm2_135m"),
    ],
)
def test_c4_has_models_of_its_own_and_the_command_line_wins(overrides, model):
    assert compose(["method=mora", "r=8", *overrides]).model.name == model


@pytest.mark.parametrize(
    ("task", "samples", "steps"),
    [("metamath", 395_000, 9258), ("biomed", 213_333, 5000), ("finance", 213_333, 5000), ("c4", 10_240_000, 10_000)],
)
def test_the_papers_steps_follow_from_the_number_of_sequences(task, samples, steps):
    config = compose([f"task={task}", "method=fft"])
    assert config.with_samples(samples).total_steps == steps
    assert run_id(config.with_samples(samples)) == run_id(config)
    if task != "c4":
        with pytest.raises(RuntimeError, match="known after its data are prepared"):
            _ = config.total_steps
        with pytest.raises(ValueError, match="the data have only 5 sequences; lower the batch"):
            config.with_samples(5)


def test_a_length_is_given_once():
    with pytest.raises(ConfigError, match=r"^task\.train: epochs=3 and max_steps=10: give one of them"):
        compose(["task=metamath", "method=fft", "task.train.max_steps=10"])


@pytest.mark.parametrize(
    ("task", "method", "r", "grid"),
    [
        ("tulu2", "fft", None, [2e-5]),
        ("metamath", "mora", 8, [2e-4, 3e-4]),
        ("metamath", "mora", 256, [3e-5, 5e-5]),
        ("biomed", "lora", 256, [3e-4, 4e-4]),
        ("finance", "mora", 8, [4e-4, 5e-4]),
        ("finance", "mora", 256, [5e-5, 7e-5]),
    ],
)
def test_grids_are_those_of_table_5(task, method, r, grid):
    assert compose([f"task={task}", f"method={method}", *([f"r={r}"] if r else [])]).lr_grid() == grid


@pytest.mark.parametrize("scale", ["lite", "paper"])
@pytest.mark.parametrize(
    ("task", "sequences"),
    [("tulu2", 19_951), ("metamath", 14_439), ("biomed", 4_515), ("finance", 14_106), ("c4", 89_320)],
)
def test_a_run_that_restarts_is_long_enough_to(task, scale, sequences):
    config = compose([f"task={task}", f"scale={scale}", "method=remora", "r=8"])
    if scale == "lite":
        assert config.with_samples(sequences).total_steps > 3 * config.method.restart.every_steps


def test_a_wrong_value_of_any_run_is_found_before_the_first_starts():
    swept = ["task=uuid", "method=lora,mora", "r=8", "scale=smoke", "hydra/launcher=joblib", "lr=1e-3,x"]
    with pytest.raises(ConfigError, match=r"^lr='x': input should be a valid number"):
        check_sweep(["-m", *swept])
    check_sweep(swept[:-1])


def test_what_trains_nothing_needs_no_warm_up():
    given = ["task=uuid", "scale=smoke", "task.train.warmup_steps=100000"]
    assert not compose([*given, "method=none"]).method.trains
    with pytest.raises(ConfigError, match=r"warmup_steps=100000: the run has only .* steps; lower it or train longer"):
        compose([*given, "method=mora", "r=4"])


def test_a_scale_has_a_name_a_description_and_a_file():
    assert hints.choices("scale") == sorted(SCALES) == sorted(get_args(ScaleName))
    for scale in SCALES:
        assert compose(["task=uuid", "method=mora", "r=8", f"scale={scale}"]).scale.name == scale


def test_several_tasks_or_scales_at_once_are_refused():
    with pytest.raises(ConfigError, match=r"^task=uuid,c4: expected one task per call"):
        check_sweep(["-m", "task=uuid,c4", "method=lora", "r=8"])
    with pytest.raises(ConfigError, match=r"^scale=lite,paper: expected one scale per call"):
        check_sweep(["-m", "task=uuid", "scale=lite,paper", "method=lora", "r=8"])


@pytest.mark.parametrize(
    ("overrides", "meant"),
    [
        (["task=uuid", "method=morra", "r=8"], "method=mora"),
        (["task=uuid", "method=MoRA", "r=8"], "method=mora"),
        (["task=uuid", "method=mora", "r=8", "model=smollm2"], "model=smollm2_135m"),
        (["task=metamat", "method=mora", "r=8"], "task=metamath"),
        (["task=uuid", "method=mora", "rank=8"], "r"),
        (["task=uuid", "method=mora", "r=8", "epochs=3"], "task.train.epochs"),
        (["task=uuid", "method=mora", "r=8", "batch_size=4"], "task.train.global_batch_size"),
        (["task=uuid", "method=mora", "r=8", "learning_rate=1e-4"], "lr"),
    ],
)
def test_what_was_meant_is_named(overrides, meant):
    with pytest.raises(ConfigError) as error:
        compose(overrides)
    assert str(error.value).endswith(f"did you mean {meant}?")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "task=uuid", "method=lora,mora", "r=8", "--cfg", "job"], "--cfg shows one run: leave -m"),
        (["--task", "uuid", "--r", "8"], "--task: settings have no dashes: task=VALUE"),
        (["task=uuid", "--learning_rate=1e-4"], "--learning_rate=1e-4: settings have no dashes: lr=1e-4"),
        (["-m", "sweep=lr", "task=uuid", "method=lora", "r=8,256"], "r=8,256: expected one value beside sweep="),
        (["-m", "task=uuid", "method=lora,", "mora"], "'method=lora,' ends in a comma: a list has no blanks: "),
        (
            ["task=uuid", "method=mora", "r=8", "task.data.pairs=[{kind:"],
            "task.data.pairs=[{kind:: cannot be read (no viable alternative at input '[{kind:'): brackets, braces and ",
        ),
    ],
)
def test_a_setting_in_another_programs_form_is_refused_with_ours(arguments, said):
    ran = subprocess.run([sys.executable, str(ROOT / "run.py"), *arguments], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("options", [["--cfg", "job"], ["--info", "defaults"], ["~tracker", "--package", "model"]])
def test_hydras_own_options_are_let_through(options):
    check_sweep(["task=uuid", "method=mora", "r=8", *options])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_run_py_explains_itself_without_composing_anything(flag):
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), flag], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("python run.py task=NAME method=NAME")
    for group in ("task", "method", "hardware", "tracker"):
        for name in hints.choices(group):
            assert f" {name}" in done.stdout
