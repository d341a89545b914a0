"""Tiny runs without dropout, on the CPU, in fp32 unless told otherwise."""

import torch

from mora.config.cached_composition import compose_cached as compose
from mora.data.batches import Batches, Sample
from mora.methods import parameter_groups, prepare, train_rest
from mora.models.load import load_model
from mora.train.engine import TorchEngine

TINY = [
    "task=uuid",
    "scale=smoke",
    "task.train.warmup_steps=2",
    "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=48",
    "model.architecture.num_hidden_layers=1",
]

LAUNCHED = {  # in the environment of a process that is started. DeepSpeed imports an optimizer that compiles for seconds
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "TORCHDYNAMO_DISABLE": "1",
}

TWELVE_STEPS = [  # of a run started as a process of its own
    "task=uuid",
    "scale=smoke",
    "task.data.pairs=8",
    "task.train.global_batch_size=8",
    "task.train.epochs=12",
    "task.train.warmup_steps=2",
    "task.train.checkpoint_every_steps=4",
]


def tiny_config(method, *overrides):
    rank = [] if method in ("fft", "none") else ["r=4"]
    if "dropout" not in " ".join(overrides) and rank:
        overrides = ["method.adapter.dropout=0", *overrides]
    return compose([*TINY, f"method={method}", *rank, *overrides])


def tiny_engine(config, dtype=torch.float32, rest=False):
    """rest: norms, embeddings and head train too, as in pretraining."""
    model, _ = load_model(config.model, "bf16" if dtype == torch.bfloat16 else "fp32")
    model = prepare(model, config)
    if rest:
        train_rest(model)
    return TorchEngine(model, config.task.train, dtype, groups=parameter_groups(model, config))


def random_batches(micro_batch_size=4, lengths=(12,)):
    """16 samples of random tokens in batches of 8; their lengths come in turn from `lengths`."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(16):
        ids = torch.randint(3, 100, (lengths[i % len(lengths)],), generator=generator).tolist()
        samples.append(Sample(ids, ids))
    return Batches(samples, 0, global_batch_size=8, micro_batch_size=micro_batch_size, seed=0)


def train_step(engine, batches, step, lr):
    """One update without clipping that matters. Returns the loss."""
    tokens = batches.loss_tokens(step)
    loss = sum(engine.backward(micro, tokens) for micro in batches.micro_batches(step))
    engine.step(lr, 1.0)
    return loss.item()
