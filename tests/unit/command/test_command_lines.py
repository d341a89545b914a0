"""Command lines as they go wrong in a user's first hour: one line that names what was meant, an exit code, and no waiting.

By kind. In this process, on the way that run.py and `mora` take; a few as processes of their own.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mora.__main__ import main
from mora.config import ConfigError, compose
from mora.config.hydra_compose import check_sweep

ROOT = Path(__file__).resolve().parents[3]
LIMIT_CPU_S = 5.0  # of a process that has not imported torch, on an old CPU

RUN = "task=uuid method=mora r=8 "
WRONG = {  # what run.py gets -> what it says
    "nothing, or too little": {
        "": "task and method are missing: python run.py task=uuid method=mora r=8; --help lists both",
        "r=8": "task and method are missing",
        "task=uuid": "method is missing: expected method=NAME; there are asylora, dora, ",
        "method=mora r=8": "task is missing: expected task=NAME; there are biomed, c4, ",
        "task=uuid method=mora": "r is missing: method mora needs one, for example r=8",
        "task=uuid method=peft": "method.config is missing: method peft needs the adapter_config.json",
        RUN + "model=custom": "path=null: expected the folder or hub id",
    },
    "a choice that is not there": {
        "task=nothing method=fft": "task=nothing: there is no such task; there are biomed, c4",
        "task=UUID method=fft": "did you mean task=uuid?",
        "task=uuid method=lora+ r=8": "did you mean method=lora_plus?",
        "task=uuid method=full": "did you mean method=fft?",
        "task=uuid method=vera": "any other of PEFT's methods is method=peft method.config=adapter_config.json",
        RUN + "scale=Lite": "did you mean scale=lite?",
        RUN + "hardware=gpu4": "did you mean hardware=gpu8?",
        RUN + "tracker=wnadb": "did you mean tracker=wandb?",
        RUN + "model=qwen": "did you mean model=qwen25_coder_0b5?",
        RUN + "model=/my/model": "a folder or hub id is model=custom model.path=PLACE",
        RUN + "model=Qwen/Qwen2.5-0.5B": "a folder or hub id is model=custom model.path=PLACE",
        "-m sweep=lrs task=metamath method=lora r=8": "did you mean sweep=lr?",
    },
    "a choice that is no name": {
        "task=3 method=fft": "task=3: expected a name; there are biomed, c4",
        "task=uuid method=[lora,mora] r=8": "method=[lora,mora]: expected a name",
        RUN + "hardware=2": "hardware=2: expected a name; there are auto, cpu",
        RUN + "model=null": "model=null: expected a name",
    },
    "a name that is another's": {
        RUN + "method.name=lora": "it comes with the method, another is method=NAME",
        RUN + "++scale.name=lite": "it comes with the scale, another is scale=NAME",
        RUN + "task.name=metamath": "it comes with the task, another is task=NAME",
        "task=metamath method=mora r=8 task.data.kind=chat": "it comes with the task",  # its run id would be metamath's
        RUN + "model=custom model.path=gpt2 model.name=llama2_7b": "is that of configs/model/llama2_7b.yaml, which",
        RUN + "model=tiny model.name=llama2_7b": "is that of configs/model/llama2_7b.yaml, which",
        RUN + "model=custom model.path=gpt2 model.name=../tiny": "name='../tiny': expected a name without /",
        RUN + "model=custom model.path=gpt2 model.name=": "name='': expected a name without /",
    },
    "a setting by another program's name": {
        RUN + "lora_r=8": "did you mean r?",
        RUN + "num_train_epochs=3": "did you mean task.train.epochs?",
        RUN + "max_steps=10": "did you mean task.train.max_steps (with task.train.epochs=null)?",
        RUN + "steps=10": "did you mean task.train.max_steps (with task.train.epochs=null)?",
        RUN + "per_device_train_batch_size=4": "did you mean hardware.micro_batch_size?",
        RUN + "lora_alpha=16": "did you mean method.adapter.lora_alpha (MoRA has none)?",
        RUN + "target_modules=all-linear": "did you mean method.adapter.target_modules?",
        RUN + "bf16=true": "did you mean scale.precision?",
        RUN + "gpus=4": "did you mean hardware.processes?",
        RUN + "num_gpus=8": "did you mean hardware.processes?",
        RUN + "warmup_ratio=0.03": "did you mean task.train.warmup_steps?",
        RUN + "batchsize=4": "did you mean task.train.global_batch_size?",
        RUN + "R=8": "did you mean r?",
        RUN + "LR=1e-4": "did you mean lr?",
        RUN + "device=cpu": "did you mean hardware.device?",
        RUN + "dropout=0.1": "did you mean method.adapter.dropout?",
        RUN + "seeds=3": "did you mean seed=0,1,2 with -m?",
        RUN + "data=train.jsonl": "did you mean task.data.corpus.sources?",
        RUN + "wandb=true": "did you mean tracker=wandb?",
        RUN + "+epochs=3": "epochs: there is no such field; did you mean task.train.epochs?",
    },
    "a setting that is misspelt, or another choice's": {
        RUN + "method.adapter.dropot=0.1": "did you mean method.adapter.dropout?",
        RUN + "task.train.epoch=3": "did you mean task.train.epochs?",
        RUN + "task.trian.epochs=3": "did you mean task.train.epochs?",
        RUN + "hardware.paralel=zero1": "did you mean hardware.parallel?",
        RUN + "method.adapter.lora_alpha=16": "there is no such field; another method has it, this one has not",
        RUN + "model.ranks={1:8}": "there is no such field; another model has it, this one has not",
        RUN + "quux=1": "Could not override 'quux': there is no such field",
    },
    "a value of another kind": {
        RUN + "lr=1e-4x": "lr='1e-4x': input should be a valid number",
        RUN + "lr=": "lr='': input should be a valid number",
        RUN + "r=8.5": "r=8.5: input should be a valid integer",
        RUN + "r=[8,16]": "r=[8, 16]: input should be a valid integer",
        RUN + "seed=-1": "seed=-1: input should be greater than or equal to 0",
        RUN + "hardware.device=mps": "hardware.device='mps': input should be 'auto', 'cpu' or 'cuda'",
        RUN + "method.adapter.target_modules=q_proj": "expected all-linear, or names of modules in brackets",
        RUN + "method.adapter.target_modules=[q_proj,4]": "=['q_proj', 4]: expected all-linear, or names of modules",
        RUN + "method.adapter.target_modules=[]": "=[]: expected all-linear, or names of modules in brackets",
        RUN + "method.adapter.kind=vera": "method.adapter.kind='vera': expected one of 'lora', 'mora', 'peft'",
        RUN + "task.evaluation.tasks=foo": "task.evaluation.tasks='foo': input should be a valid list",
        RUN + "task.lr_grid.mora=foo": "task.lr_grid.mora='foo': input should be a valid list",
        RUN + "task.train=null": "task.train=None: input should be a valid dictionary",
        RUN + "task.train.max_steps=10": "give one of them, the other as null: task.train.epochs=null",
        RUN + "lr=${nothing}": "Interpolation key 'nothing' not found",
        "task=uuid method=peft method.config=/no.json": "method.config='/no.json': there is no such file",
        "task=uuid method=peft method.config=README.md": "method.config='README.md' cannot be read",
        RUN + "model=custom model.path=/no/such": "model.path='/no/such': there is no such folder",
        RUN + "model=custom model.path=''": "expected the folder or hub id",
        RUN + "model=custom model.path=.": f"model.path='{ROOT}' has no config.json",
        RUN + "model=custom model.path=~/mine": "~ stays as it is here: write $HOME, or the whole path",
    },
    "another program's form": {
        "--task=uuid": "--task=uuid: settings have no dashes: task=uuid",
        "-r 8 task=uuid": "-r 8: settings have no dashes: r=8",
        RUN + "--scale smoke": "--scale: settings have no dashes: scale=VALUE",
        "--resolve task=uuid": "--resolve: expected with --cfg job alone",
        "task uuid": "'task': expected KEY=VALUE",
        RUN + "help": "'help': expected KEY=VALUE",
        "task=uuid, method=mora": "'task=uuid,' ends in a comma",
        "task=uuid method=lora,mora r=8": "method=lora,mora: several values are several runs: python run.py -m",
        RUN + "lr=1e-4,2e-4": "lr=1e-4,2e-4: several values are several runs",
        RUN
        + "task.data.corpus.sources=[{kind: files, format: text}]": "brackets, braces and quotes that open must close",
        RUN + 'lr="\'1"': "lr='1: cannot be read",
    },
    "a sweep": {
        "sweep=lr task=metamath method=lora r=8": "sweep= without -m would be one run: python run.py -m",
        "-m task=uuid method=lora r=8 seed=0,x": "seed='x': input should be a valid integer",
    },
}


def as_run_py(arguments):
    check_sweep(arguments)
    compose([argument for argument in arguments if not argument.startswith("-")])


@pytest.mark.parametrize(
    ("line", "said"),
    [pytest.param(*pair, id=f"{kind}: {pair[0]}") for kind, of in WRONG.items() for pair in of.items()],
)
def test_run_py_refuses_in_one_line(line, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(line)
    with pytest.raises(ConfigError) as refused:
        as_run_py(arguments)
    text = str(refused.value)
    assert said in text
    assert "\n" not in text
    assert text.count("did you mean") < 2


@pytest.mark.parametrize(
    "line",
    [
        "task=uuid method=mora r=8.0",
        "task=uuid method=mora r=8 ++r=4",
        "task=uuid method=lora r=8 method.adapter.target_modules=all-linear",
        "task=tulu2 method=mora r=8 task.data.corpus.sources=[{kind:files,files:a.jsonl,format:messages}]",
    ],
)
def test_what_is_meant_as_it_stands_is_taken(line):
    as_run_py(line.split())


def test_the_modules_of_the_command_line_are_those_that_are_adapted():
    """Also on a model that has modules of its own."""
    own = ["task=uuid", "method=lora", "r=8", "model=custom", "model.path=gpt2"]
    assert compose(own).target_modules == "all-linear"
    assert compose([*own, "method.adapter.target_modules=[c_attn]"]).target_modules == ["c_attn"]
    assert compose([*own, "model.target_modules=[c_fc]"]).target_modules == ["c_fc"]
    assert "q_proj" in compose(own[:3]).target_modules


OTHERS = {  # of `mora`: what it gets -> exit code and the end of what it says
    "helpp": (2, "there is no command 'helpp'; there are train, table"),
    "evalute tiny": (2, "did you mean evaluate?"),
    "table": (2, "expected the name of an experiment: figure2, figure3"),
    "table tabl1 --scale smoke": (2, "there is no experiment 'tabl1'; there are figure2"),
    "table table2 --scale tiny": (2, "argument --scale: invalid choice: 'tiny'"),
    "table table2 --jobs 0": (2, "argument --jobs: '0': expected a whole number above 0"),
    "table table2 --scale smoke --hardware gpu9": (2, "did you mean hardware=gpu8?"),
    "table table2 --scale smoke --results README.md": (2, "--results README.md: is a file; expected a folder"),
    "table table2 --scale smoke --set foo": (2, "--set foo: expected KEY=VALUE"),
    "table table2 --scale smoke --set hardware=2": (2, "hardware=2: expected a name; there are auto, cpu"),
    "table table2 --scale smoke --set foo=1": (2, "Could not override 'foo': there is no such field"),
    "plan table2 --scale lite --gpu h300": (2, "expected h100, a100-40"),
    "plan table2 --scale lite --only r=64": (2, "no cell has r=64; there are 1, 8, 32; the paper's r=64 is r=8 here"),
    "plan table1 --scale lite --only r=8": (2, "no cell has r=8; there are 1, 32; the paper's r=8 is r=1 here"),
    "plan table1 --scale lite --only r": (2, "--only r: expected task=VALUE,..., method=VALUE,..., r=VALUE"),
    "plan table1 --scale lite --only method=morra": (2, "did you mean mora?"),
    "plan table1 --scale lite --only task=uuid,method=lora": (2, "stand apart: --only task=uuid method=lora"),
    "data": (2, "the following arguments are required: task"),
    "data uuidd": (2, "did you mean task=uuid?"),
    "data uuid r=8": (2, "r=8: method none has no rank; leave r out"),
    "evaluate tiny": (2, "the following arguments are required: --task"),
    "evaluate smollm2 --task uuid": (2, "there is no such model; did you mean smollm2_135m?"),
    "evaluate /no/such --task uuid": (2, "'/no/such': there is no such folder; give a folder, hub id or name"),
    "evaluate README.md --task uuid": (2, "'README.md' is a file: expected a folder, hub id or name"),
    f"evaluate {'x' * 300} --task uuid": (2, "File name too long; expected a folder, hub id or name in configs/model"),
    "evaluate tiny --task uuid --device foo": (2, "argument --device: 'foo': expected a device that is here"),
    "evaluate tiny --task uuid --output README.md": (
        2,
        "argument --output: 'README.md': expected a folder that can be written or made; README.md is none",
    ),
    "merge none_such README.md/merged": (2, "expected a folder that can be written or made; "),
    "spectrum tiny tiny --out docs": (2, "argument --out: 'docs': is a folder; expected a file"),
    "spectrum tiny tiny --out README.md/a.json": (2, "'README.md': expected a folder that can be written or made"),
    "compare none_such none_such": (2, "none_such/samples holds no samples: give the folder of a run"),
    "merge none_such": (2, "'none_such': expected a run's id or folder, or a folder with an adapter"),
    "merge configs": (2, "configs holds neither adapter/ nor model/"),
    "generate smollm2 hello": (2, "there is no such model; did you mean smollm2_135m?"),
    "evaluate docs --task uuid": (2, "'docs': expected a folder with config.json or adapter_config.json"),
    "evaluate '' --task uuid": (2, "'': expected a folder with config.json or adapter_config.json"),
    "generate tiny hello --temperature nan": (2, "argument --temperature: 'nan': expected a number, 0 or more"),
    "generate tiny hello --seed -1": (2, "argument --seed: '-1': expected a whole number from 0 on"),
    f"generate tiny hello --seed {2**63}": (2, "expected a whole number from 0 on, below 2^63"),
    "generate /no/such hello": (2, "'/no/such': expected a run's id or folder, or a folder with an adapter"),
    "spectrum smolm2 tiny": (2, "there is no such model; did you mean smollm2_135m?"),
    "spectrum tiny": (2, "give BASE and TUNED, or --run RUN_DIR"),
}


@pytest.mark.parametrize("line", OTHERS)
def test_mora_refuses_in_one_line(line, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    expected, said = OTHERS[line]
    try:
        code = main(shlex.split(line))
    except SystemExit as ended:
        code = ended.code
    assert code == expected
    text = capsys.readouterr().err
    assert said in text.splitlines()[-1]
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["run.py", "task=uuid", "method=mora", "r=8", "epochs=3"], 1, "did you mean task.train.epochs?"),
        (["run.py", "task=uuid", "method=mora", "r=8", "hardware=2"], 1, "hardware=2: expected a name"),
        (["run.py", "--r", "8"], 1, "settings have no dashes: r=VALUE"),
        (["-m", "mora", "table"], 2, "expected the name of an experiment"),
        (["-m", "mora", "evaluate", "smollm2", "--task", "uuid"], 2, "did you mean smollm2_135m?"),
        (["-m", "mora", "generate", "/no/such", "hello"], 2, "expected a run's id or folder"),
        (["scripts/run_queue.py", "none.txt"], 1, "none.txt: No such file or directory; expected a file with a run"),
        (
            ["scripts/run_queue.py", "none.txt", "--out", "README.md"],
            2,
            "argument --out: 'README.md': expected a folder",
        ),
        (["scripts/make_bundle.py", "README.md"], 2, "argument out: 'README.md': expected a folder"),
        (["-m", "mora.suite.report", "--to", "README.md"], 2, "argument --to: 'README.md': expected a folder"),
    ],
)
def test_as_a_process_it_ends_at_once_without_a_traceback(command, code, said):
    before = os.times()
    ran = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    after = os.times()
    assert ran.returncode == code
    assert said in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert not ran.stdout
    assert after.children_user + after.children_system - before.children_user - before.children_system < LIMIT_CPU_S
