"""One run, or a Hydra multirun: compose -> validate -> start the worker. Does not import torch.

python run.py task=uuid method=mora r=8 scale=lite
python run.py -m task=uuid method=lora r=8 lr=1e-4,2e-4,3e-4
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mora.config.hardware_schema import SCALES
from mora.config.hints import choices
from mora.config.hydra_compose import check_names, check_sweep, hydra_line, validate, with_task_file
from mora.config.run_id import log_path
from mora.errors import MoraError
from mora.suite.default_lr import default_lr
from mora.suite.launch import interrupt_on_sigterm, launch
from mora.suite.multirun import Ran, summary

RUNS: list[Ran] = []  # the runs of a multirun that this process has come to so far


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(composed: DictConfig) -> None:
    try:
        check_names(composed, HydraConfig.get().runtime.choices)
        config = validate(composed)
        if composed.lr is None and config.method.trains:
            config, source = default_lr(config)
            print(f"lr={config.lr:g}: {source}")
    except MoraError as error:
        sys.exit(f"run.py: {error}")
    interrupt_on_sigterm()
    RUNS.append((list(HydraConfig.get().overrides.task), config))
    try:
        code = launch(config)
    except (MoraError, OSError) as error:
        sys.exit(f"run.py: {error}")
    if code:
        sys.exit(code)
    shown = "make report SCALE=smoke" if config.scale.name == "smoke" else "make report"
    print(f"log: {log_path(config)}; `{shown}` shows the runs of tables and figures as pages")


GROUPS = {"tasks": "task", "methods": "method", "hardware": "hardware"}  # the groups whose choices --help lists
HELP = """python run.py task=NAME method=NAME [r=N] [scale=NAME] [KEY=VALUE ...]

One run: train, evaluate, one result JSON in results/runs. -m makes a multirun of values between commas, or of sweep=lr.

  task      {tasks}        what is learned, and how it is scored
  method    {methods}
            peft takes any other of PEFT's: method.config=adapter_config.json
  r         the LoRA rank, or the one whose number of parameters MoRA has at most; none and fft take none
  scale     {scales} (default)
  lr        without: the rate that a search of this cell chose, else the middle of its grid; printed
  seed      of initialisation, order and dropout
  hardware  {hardware}; hardware.micro_batch_size=N
  model     a name in configs/model, or model=custom model.path=FOLDER_OR_HUB_ID
  tracker   none tensorboard wandb

python run.py task=uuid method=mora r=8 scale=smoke
python run.py task=uuid method=mora r=8 scale=smoke --cfg job    prints every setting and runs nothing
python run.py --hydra-help                                       Hydra's own options
"""


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv[1:]}:
        groups = {name: " ".join(choices(group)) for name, group in GROUPS.items()}
        scales = f",\n{' ' * 12}".join(f"{name}: {what}" for name, what in SCALES.items())
        print(HELP.format(**groups, scales=scales), end="")
        sys.exit(0)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.exit(
            "run.py: started under torchrun. It starts the ranks itself: python run.py ... hardware=gpu8; or run "
            "torchrun -m mora.train RUN_DIR on a folder that it has made"
        )
    own_launcher = any(argument.startswith("hydra/launcher=") for argument in sys.argv)
    if "hardware=slurm" in sys.argv and not own_launcher and shutil.which("srun") is None:
        sys.exit("run.py: hardware=slurm: there is no srun in PATH; start it on a SLURM cluster, or use hardware=gpu8")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that Hydra raises what it would spread over twenty lines
    try:
        check_sweep(sys.argv[1:])
        sys.argv[1:] = with_task_file(sys.argv[1:])
        try:
            main()
        finally:
            with suppress(MoraError):  # a damaged result must not change the exit code
                if len(RUNS) > 1:
                    print(summary(RUNS), flush=True)
    except (MoraError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"run.py: {hydra_line(error)}")
