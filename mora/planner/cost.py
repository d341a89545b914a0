"""The cost of a run before it is started: steps and tokens, FLOPs, memory per GPU, hours, disk.

Needs no torch and no weights. Evaluation and checkpoint writing are not in the hours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mora.config import RunConfig
from mora.padding import padded_length
from mora.results import RunResult

from .counts import flops_per_token, trainable
from .gpus import H100, Gpu
from .memory import Memory, fitting_micro_batch, memory, of_one_length
from .speed import padded_tokens_per_sequence, token_time
from .storage import storage

# Training sequences where the data decide. A result of the task and scale, where there is one, is asked first.
SEQUENCES: dict[tuple[str, str], int] = {
    ("paper", "tulu2"): 326_154 - 256,  # allenai/tulu-v2-sft-mixture; the paper says 326k; less what is held out
    ("paper", "metamath"): 395_000 - 6_750,  # meta-math/MetaMathQA; the paper says 395k; less 256 of some 15k questions
    ("paper", "biomed"): 213_333,  # configs/task/biomed/paper.yaml, from kongds/MoRA issue 5
    ("paper", "finance"): 213_333,  # configs/task/finance/paper.yaml
    ("lite", "tulu2"): 19_951,  # docs/LOG.md, as prepared from the stand-ins; so the next three
    ("lite", "metamath"): 14_439,
    ("lite", "biomed"): 4_515,
    ("lite", "finance"): 14_106,
    ("smoke", "tulu2"): 64,  # rows of configs/task/tulu2/smoke.yaml, less the eight held out
    ("smoke", "metamath"): 64,
}
# Tokens of a training sequence of the stand-ins, in the mean, as prepared for scales lite and mid.
MEAN_TOKENS = {"tulu2": 127.5, "metamath": 236.9}


@dataclass(frozen=True)
class Length:
    """Steps and tokens of a run; with `at_most` the tokens are a bound. None: the data are not prepared.

    `padding`: tokens with padding over those without.
    """

    steps: int | None
    tokens: float | None
    at_most: bool = True
    padding: float = 1.0


def length_of(config: RunConfig, results: Iterable[RunResult] = ()) -> Length:
    """Return the run's length. `results` of the same task and scale have counts, which are taken first."""
    train, longest, rows = config.task.train, max_length(config), config.hardware.padding_free
    counted = [
        r
        for r in results
        if (report := r.data.get("report")) and report.get("sequences") and report.get("sequence_tokens")
    ]
    if counted:
        alike = [r for r in counted if bool(r.config["hardware"].get("padding_free")) == rows]
        report = (alike or counted)[0].data["report"]
        known = config if config.knows_steps else config.with_samples(report["sequences"])
        mean = report["sequence_tokens"] / report["sequences"]
        tokens = known.last_step * train.global_batch_size * mean
        padding = padded_tokens_per_sequence(alike[0]) / mean if alike else _padding(mean, longest, rows)
        return Length(known.last_step, tokens, at_most=False, padding=padding)
    if config.knows_steps:
        steps = config.last_step
    elif count := SEQUENCES.get((config.scale.name, config.task.name)):
        steps = config.with_samples(count).last_step
    else:
        return Length(None, None)
    sequences = steps * train.global_batch_size
    if config.scale.name in ("lite", "mid") and (mean := MEAN_TOKENS.get(config.task.name)):
        return Length(steps, sequences * mean, at_most=False, padding=_padding(mean, longest, rows))
    full = of_one_length(config) and config.task.name != "uuid"  # blocks; how many tokens a UUID has is the tokenizer's
    return Length(steps, sequences * longest, not full)


def _padding(mean: float, longest: int, rows: bool) -> float:
    """Return tokens with padding over those without, of sequences of so many tokens; of `rows` end to end there is none."""
    return 1.0 if rows else padded_length(math.ceil(mean), longest) / mean


def max_length(config: RunConfig) -> int:
    """Return the tokens of the longest sequence.

    A UUID pair has 73 characters and BOS if each is a token, and at most 80 elsewhere.
    """
    return getattr(config.task.data, "max_length", None) or (75 if config.scale.name == "smoke" else 80)


@dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
        memory: At `micro_batch_size`.
        micro_batch_size: The largest that fits; None if not even one sequence does. On a CPU, whose memory and speed
            are not known, the one that is set, and no hours.
        gpu_hours: Of training alone.
        disk: Bytes that are left at the end.
        checkpoints: The most bytes of checkpoints meanwhile.
    """

    steps: int | None
    tokens: float | None
    at_most: bool
    flops: float | None
    trainable: int
    memory: Memory
    micro_batch_size: int | None
    gpu_hours: float | None
    time_source: str
    disk: float
    checkpoints: float


def cost(config: RunConfig, results: Iterable[RunResult] = (), gpu: Gpu = H100) -> Cost:
    """Return the cost of a run.

    Args:
        config: The run.
        results: Results of the same task and scale, for the length of their data.
        gpu: On another GPU than an H100 the speed is scaled by the peaks of both, and its source says so.
    """
    longest = max_length(config)
    length = length_of(config, results) if config.method.trains else Length(0, 0.0, at_most=False)
    flops = None if length.tokens is None else length.tokens * flops_per_token(config, longest)
    stored, on_cpu = storage(config), config.hardware.device == "cpu"
    micro = config.micro_batch_size if on_cpu else fitting_micro_batch(config, longest, gpu.memory)
    needs = memory(config, longest, micro or 1)
    time = None if on_cpu else token_time(config, longest, micro or 1).on(gpu)
    padded = None if length.tokens is None else length.tokens * length.padding
    return Cost(
        steps=length.steps,
        tokens=length.tokens,
        at_most=length.at_most,
        flops=flops,
        trainable=trainable(config),
        memory=needs,
        micro_batch_size=micro,
        gpu_hours=None if padded is None or time is None else padded * time.seconds_per_token / 3600,
        time_source="not known on a CPU" if time is None else time.source,
        disk=stored.left,
        checkpoints=3 * stored.checkpoint,  # two kept and one being written
    )
