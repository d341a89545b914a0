"""Memory of a run on one GPU, by component, counted from what the engines keep and what autograd saves for backward."""

from __future__ import annotations

from dataclasses import dataclass

from mora.config import RunConfig
from mora.models.shapes import Shape, shape_of

from .counts import adapters, frozen_adapter, number_bytes, shadow_bytes, trainable
from .gpus import H100

RESERVE = 0.08  # of it: the CUDA context, libraries, fragmentation
LOSS_CHUNK_BYTES = 2**28  # of fp32 logits at a time, mora/models/fused_loss.py
WORKSPACE_BYTES = 2**25  # that torch gives cuBLAS on Hopper, for each pair of a handle and a stream
HANDLES = 2  # of cuBLAS: of the thread that runs forward and of autograd's
BUCKET = 5e8  # gradients that DeepSpeed reduces at a time, its default; their place is taken whole
LIVE = 1e9  # weights that ZeRO-3 leaves gathered, DeepSpeed's default
INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("down_proj",))  # who reads the same one

# o_proj's input is attention's output, which attention keeps by itself.


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, each at its most; `shadow` lies in the CPU memory of rank 0.

    `held`: what there is of gradients before backward begins, from earlier micro batches. `workspaces`: of cuBLAS, and of
    DeepSpeed. `recomputed`: what of the activations gradient checkpointing makes anew, once the logits are gone. `graphs`:
    what captured CUDA graphs keep for themselves while a pass of a shape that is not captured runs beside them.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    shadow: float
    held: float
    workspaces: float
    recomputed: float
    graphs: float

    @property
    def gpu(self) -> float:
        """Bytes at the peak of a step: as backward begins, or once it has freed the activations and made all gradients."""
        backward = max(self.held + self.moving, self.gradients)
        return self.weights + self.optimizer + backward + self.workspaces + self.graphs

    @property
    def moving(self) -> float:
        """The most bytes of activations and logits."""
        return self.activations + self.logits - min(self.recomputed, self.logits)


def memory(
    config: RunConfig,
    length: int,
    micro_batch_size: int | None = None,
    fused: bool = True,
    chunked_loss: bool = True,
) -> Memory:
    """Return the memory of a step on sequences of `length` tokens.

    Args:
        config: The run. hardware.offload is not counted: what it would move to the CPU counts as memory of the GPU.
        length: Tokens of a sequence.
        micro_batch_size: Sequences per pass; None takes the run's.
        fused: With liger-kernel's norms and gate.
        chunked_loss: With the loss of fused_loss.py.
    """
    shape, ranks, stage = shape_of(config.model), config.hardware.world_size, config.parallel
    trained, own_frozen, number_size = trainable(config), frozen_adapter(config), number_bytes(config)
    frozen = shape.parameters - (trained if config.method.adapter is None else shape.rest if config.trains_rest else 0)
    split = {name: ranks if stage in stages else 1 for name, stages in SPLIT.items()}
    size = micro_batch_size or config.micro_batch_size
    weights = number_size * (frozen + trained + own_frozen) / split["weights"]
    if number_size == 2:
        weights += 4 * own_frozen  # its fp32 values, which are saved: mora/train/engine.py, round_frozen
    if stage.startswith("zero"):  # sums of gradients in fp32, at stage 3 at all times; those in bf16 are not kept
        gradients, optimizer = 4 * trained / split["gradients"], 12 * trained / split["optimizer"]
        held = gradients if stage == "zero3" else gradients * _sums_held(config, size)
    else:  # in bf16: gradients in bf16 until they are added up in fp32, and fp32 masters
        gradients, optimizer = (6.0, 12.0) if number_size == 2 else (4.0, 8.0)
        gradients, optimizer = gradients * trained, optimizer * trained
        held = 4.0 * trained * _sums_held(config, size)
    tokens = size * length
    logits = _loss_bytes(config, shape, tokens, number_size, chunked_loss)
    shadow = shadow_bytes(config)
    kept, recomputed = (number_size * tokens * numbers for numbers in _saved(config, shape, fused))
    workspaces = _workspaces(config, shape)
    graphs = 0.0 if of_one_length(config) or not _captures(config) else kept + recomputed + logits
    return Memory(
        weights, gradients, optimizer, kept + recomputed, logits, shadow, held, workspaces, recomputed, graphs
    )


def of_one_length(config: RunConfig) -> bool:
    """Return whether all training sequences are equally long once they are padded: full blocks of text, or UUIDs."""
    return config.task.name in ("uuid", "c4", "biomed", "finance")


def _workspaces(config: RunConfig, shape: Shape) -> float:
    """Return the workspaces of cuBLAS, and DeepSpeed's buffers for reducing gradients and for gathered weights."""
    streams = 2 if _captures(config) else 1  # a graph is captured on a stream of its own
    cublas, number_size = float(HANDLES * streams * WORKSPACE_BYTES), number_bytes(config)
    gathered = number_size * min(shape.parameters, LIVE) if config.parallel == "zero3" else 0
    bucket = {"zero1": 4, "zero2": number_size, "zero3": 4}.get(config.parallel, 0) * BUCKET
    return cublas + bucket + gathered


def _captures(config: RunConfig) -> bool:
    return config.hardware.captures_graphs and not config.parallel.startswith("zero")


def _sums_held(config: RunConfig, micro_batch_size: int) -> int:
    """Return the copies of the gradients when backward begins: the sums, and one more while a graph is captured."""
    if _captures(config):
        return 2
    passes = config.task.train.global_batch_size / (micro_batch_size * config.hardware.world_size)
    return int(passes > 1 or config.hardware.micro_batch_tokens is not None)


SPLIT = {
    "optimizer": ("zero1", "zero2", "zero3"),
    "gradients": ("zero2", "zero3"),
    "weights": ("zero3",),
}  # what which stage of ZeRO divides by the ranks


def _saved(config: RunConfig, shape: Shape, fused: bool) -> tuple[float, float]:
    """Return the numbers of the compute dtype that backward needs per token over all layers: kept, and recomputed.

    A layer has its two norms (x, twice as wide in fp32 if not fused), q, k, v and attention's output, gate and up (and
    silu of the gate if not fused), and what the adapters or trained weights read. liger's norm keeps x as it is, its
    gate the two factors, its rotary embedding nothing. Gradient checkpointing keeps every layer's input, and one layer
    at a time.
    """
    h, i, q = shape.hidden, shape.mlp, shape.queries
    trains_norms = config.method.adapter is None or config.trains_rest
    layer: float = (2 if fused else 4) * h + 2 * q + 2 * shape.kv + (2 if fused else 3) * i
    if config.method.adapter is None:
        layer += 2 * h + i  # inputs of q, k, v, of gate and up, and of down
    else:
        layer += _saved_by_adapters(config)
    if trains_norms and not fused:
        layer += 2 * h  # what their weights are multiplied with
    if config.hardware.gradient_checkpointing:
        return h * (shape.layers + 2), layer
    return layer * shape.layers + 2 * h, 0.0


def _saved_by_adapters(config: RunConfig) -> float:
    """Return the numbers that one layer's adapters save, and each input once if one of its readers keeps it."""
    by_module = adapters(config)
    saved = sum(adapter.saved for _, adapter in by_module.values())
    together = [readers for readers in INPUTS if by_module.keys() & {*readers}]
    alone = [(name,) for name in by_module if name != "o_proj" and not any(name in readers for readers in INPUTS)]
    for readers in (*together, *alone):
        sizes = [
            by_module[name][0].in_features for name in readers if name in by_module and by_module[name][1].keeps_input
        ]
        saved += max(sizes, default=0)
    return saved


def _loss_bytes(config: RunConfig, shape: Shape, tokens: int, number_size: int, chunked: bool) -> float:
    """Return the peak bytes of the loss: two chunks of logits, and hidden states beside those kept.

    The next chunk is allocated before the last is freed. A head that trains adds its gradient's sum in fp32, and what
    one chunk adds to it. Without chunks, as under ZeRO-3, there are the whole logits: the log-probabilities, their
    gradient and that of the logits.
    """
    logits = float(tokens * shape.vocabulary)
    if not chunked or config.parallel == "zero3":
        return logits * 12
    chunks = min(2 * LOSS_CHUNK_BYTES / 4, logits) * number_size
    if config.method.adapter is None or config.trains_rest:
        return chunks + number_size * tokens * shape.hidden + (4 + number_size) * shape.head
    return chunks + 2 * number_size * tokens * shape.hidden


def sequences_per_pass(config: RunConfig, length: int) -> int:
    """Return the sequences of one process in one pass. If tokens are set: as many of the longest as they allow."""
    tokens = config.hardware.micro_batch_tokens
    return config.micro_batch_size if tokens is None else min(_share(config), max(1, tokens // length))


def fitting_micro_batch(config: RunConfig, length: int, gpu_bytes: float = H100.memory) -> int | None:
    """Return the largest number of sequences per pass that fits the GPU and divides a rank's share; None if none does."""
    sizes = (n for n in range(sequences_per_pass(config, length), 0, -1) if _share(config) % n == 0)
    return next((n for n in sizes if memory(config, length, n).gpu <= gpu_bytes * (1 - RESERVE)), None)


def _share(config: RunConfig) -> int:
    """Return the sequences of one process in an update."""
    return config.task.train.global_batch_size // config.hardware.world_size
