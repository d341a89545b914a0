"""The sections `scale`, `hardware` and `tracker` of a run's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from mora.frozen import FrozenModel

ScaleName = Literal["smoke", "lite", "mid", "paper"]
SCALES: dict[ScaleName, str] = {  # in order of cost; configs/scale/NAME.yaml chooses the model
    "smoke": "a tiny model on a CPU, which shows the path alone",
    "lite": "small models",
    "mid": "1.5B",
    "paper": "the paper's models",
}


class Scale(FrozenModel):
    """How large a replication is: model, data and precision. Read by `mora/models`, `mora/train` and `mora/suite`."""

    name: ScaleName
    """The name in captions. Results of different scales never share a table."""
    precision: Literal["fp32", "bf16"]
    """Of compute and of frozen weights. What trains has fp32 masters."""
    results_dir: str
    """The folder of results, relative to the checkout. Not part of the run id."""


class Hardware(FrozenModel):
    """Where a run computes, and how it is spread over devices. Not part of the run id.

    Results agree up to rounding and, with dropout, up to the masks that are drawn.
    Read by `mora/suite/launch.py`, which starts the processes, and by `mora/train`.
    """

    name: str
    """The name in results and in `make table1 HARDWARE=name`."""
    device: Literal["auto", "cpu", "cuda"]
    """auto: the first GPU, or the CPU if there is none."""
    cuda_graphs: bool
    """Capture a step as a CUDA graph once its batch shape recurs. Off under gradient checkpointing."""
    micro_batch_size: PositiveInt | None
    """Sequences of one process in one forward pass; null: on a GPU the most that the plan says fit, else its whole share."""
    micro_batch_tokens: PositiveInt | None = None
    """Instead of `micro_batch_size`: the most tokens, padding included, of one process in one forward pass."""
    padding_free: bool = False
    """Lay the sequences of a pass end to end in one row, of at most `micro_batch_tokens`, instead of padding them."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass instead of keeping their activations: less memory, more time."""
    processes: PositiveInt = 1
    """Processes per node, one per GPU."""
    nodes: PositiveInt = 1
    """Machines."""
    parallel: Literal["auto", "none", "ddp", "zero1", "zero2", "zero3"] = "auto"
    """How processes share the work. auto: none for one process, zero1 for an adapter, zero3 for full fine-tuning."""
    offload: bool = False
    """Keep ZeRO's optimizer state, and at stage 3 the weights, on the CPU."""
    save_model: bool = True
    """Leave the trained adapter or model in the run's folder. A table's searches leave none, unless they are final runs."""
    rendezvous: str | None = None
    """HOST:PORT of the first node, needed for several nodes; slurm: the first node of the job."""

    @property
    def world_size(self) -> int:
        """Return the number of processes on all nodes."""
        return self.processes * self.nodes

    @property
    def captures_graphs(self) -> bool:
        """Return whether steps may become CUDA graphs.

        Gradient checkpointing sets the random state anew for dropout, which no graph may do while it is captured.
        """
        return self.cuda_graphs and not self.gradient_checkpointing


class Tracker(FrozenModel):
    """Where the log goes besides `log.jsonl`, always whole. Not part of the run id. Read by `mora/train/tracker.py`."""

    kind: Literal["none", "tensorboard", "wandb"]
    """The tracker."""
    project: str | None = None
    """W&B's project, or the folder of TensorBoard's logs inside the run's."""
    mode: Literal["online", "offline"] | None = None
    """W&B alone: offline keeps the log on this machine."""
