"""python -m mora.analysis.capacity: what LoRA and MoRA can do in one linear layer; docs/capacity.md says what follows.

Two toys of a square layer of D inputs and outputs, with LoRA's and MoRA's numbers of parameters exactly equal. In the
linear teacher the layer is to imitate a random matrix on white inputs: the best fit, in closed form. In the associative
memory it is to store keys, each with one of D classes, read through a frozen square matrix: trained, and steps are counted.

Minutes on one core; --render draws again what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from mora.adapter.operators import OPERATORS
from mora.config import source
from mora.config.arguments import output_folder
from mora.io import replace_file

RESULTS = source.ROOT / "results" / "analysis"
D = 256  # inputs, outputs and classes; sqrt(2 r D) is whole for every rank below, and divides D
COPYING = ("truncation", "sharing", "decouple", "rotation")  # their ΔW holds every entry of M equally often
SEEDS = (0, 1, 2)
TEACHER_RANKS = (1, 4, 16, 64, 256)  # of equal singular values
FIT_RANKS = (2, 8, 32)
MEMORY_RANKS = (2, 8)
LOADS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # bits to store per trainable parameter; a class of 256 has eight
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
STEPS = 400
KNOWN = 0.99  # of the keys

Forward = Callable[[Tensor], Tensor]


class Arm(NamedTuple):
    """What is trained, and the layer's output as a function of it: (keys, D) -> (keys, D)."""

    parameters: list[Tensor]
    forward: Forward


def arm(name: str, r: int, generator: Generator) -> Arm:
    """Return an arm of the memory with 2 r D parameters, at the start, when it adds nothing yet.

    Arms are "lora"; "lora_frozen_a", of rank 2 r, whose A stays as drawn; an operator of MoRA; "projections", a square
    M between frozen Gaussian matrices; "tied_2r" and "tied_4r", a LoRA of two or four times the rank inside the groups
    of "sharing".
    """
    side = math.isqrt(2 * r * D)
    if name in ("lora", "lora_frozen_a"):
        rank = r if name == "lora" else 2 * r
        a, b = _draw(rank, D, generator), torch.zeros(D, rank)
        return Arm([a, b] if name == "lora" else [b], lambda x: x @ a.T @ b.T)
    if name == "projections":
        into, out, m = _draw(side, D, generator), _draw(side, D, generator), torch.zeros(side, side)
        return Arm([m], lambda x: x @ into.T @ m.T @ out)
    if name in ("tied_2r", "tied_4r"):
        times = int(name[5])
        rank, groups = times * r, D // times
        a, b, tied = _draw(rank, groups, generator), torch.zeros(groups, rank), OPERATORS["sharing"](D, D, groups)
        return Arm([a, b], lambda x: tied.decompress(tied.compress(x) @ a.T @ b.T))
    operator, m = OPERATORS[name](D, D, side), torch.zeros(side, side)
    return Arm([m], lambda x: operator.decompress(operator.compress(x) @ m.T))


def _draw(rows: int, columns: int, generator: Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)


LABELS = {
    "lora": "LoRA",
    "lora_frozen_a": "LoRA, A frozen, rank 2r",
    "sharing": "MoRA, sharing",
    "decouple": "MoRA, decouple",
    "rotation": "MoRA, rotation",
    "projections": "square M between frozen projections",
    "tied_2r": "LoRA, rank 2r, inputs tied in pairs",
    "tied_4r": "LoRA, rank 4r, inputs tied in fours",
}


def remember(name: str, r: int, load: float, rate: float, seed: int) -> dict[str, Any]:
    """Train one arm with Adam on all keys at once, until KNOWN of them are right or STEPS are over.

    Returns:
        `steps`, the update after which KNOWN keys were right or None, and `accuracy`, of the last state.
    """
    generator = Generator().manual_seed(seed)
    n = round(load * 2 * r * D / math.log2(D))
    keys, values = torch.randn(n, D, generator=generator), torch.randint(D, (n,), generator=generator)
    readout = _draw(D, D, generator)
    trained, forward = arm(name, r, generator)
    for p in trained:
        p.requires_grad_()
    optimizer = torch.optim.Adam(trained, lr=rate)
    accuracy = 0.0
    for step in range(STEPS + 1):
        logits = forward(keys) @ readout
        accuracy = (logits.argmax(1) == values).float().mean().item()
        if accuracy >= KNOWN:
            return {"steps": step, "accuracy": accuracy}
        optimizer.zero_grad()
        cross_entropy(logits, values).backward()
        optimizer.step()
    return {"steps": None, "accuracy": accuracy}


def at_best_rate(name: str, r: int, load: float) -> dict[str, Any]:
    """Train every seed at the learning rate that is best on the first: fewest steps, then most keys.

    `edge` tells whether that is the highest or the lowest rate tried.
    """
    tried = {rate: remember(name, r, load, rate, SEEDS[0]) for rate in RATES}
    best = min(RATES, key=lambda rate: (tried[rate]["steps"] or math.inf, -tried[rate]["accuracy"]))
    runs = [tried[best], *(remember(name, r, load, best, seed) for seed in SEEDS[1:])]
    result = {"arm": name, "r": r, "load": load, "lr": best, "edge": best in (RATES[0], RATES[-1])}
    return result | {key: [run[key] for run in runs] for key in ("steps", "accuracy")}


def teacher(rank: int | None, generator: Generator) -> Tensor:
    """Return a teacher (D, D) with `rank` equal singular values; None draws a Gaussian one."""
    if rank is None:
        return torch.randn(D, D, generator=generator)
    left, right = (torch.linalg.qr(torch.randn(D, rank, generator=generator))[0] for _ in range(2))
    return left @ right.T


def lora_fit(target: Tensor, r: int) -> float:
    """Return the share of a matrix's energy in its r largest singular values, which the best update of rank r reaches."""
    energy = torch.linalg.svdvals(target).square()
    return float(energy[:r].sum() / energy.sum())


def mora_fit(target: Tensor, r: int, operator: str) -> float:
    """Return the share of a matrix's energy in the span of delta_weight, which the best M reaches.

    `operator`: one of COPYING, of which the adjoint of `delta_weight` gives the projection, up to the number of copies.
    """
    side = math.isqrt(2 * r * D)
    map_of = OPERATORS[operator](D, D, side).delta_weight
    m = torch.randn(side, side, generator=Generator().manual_seed(0))
    copies = map_of(m).square().sum() / m.square().sum()
    adjoint = torch.func.vjp(map_of, m)[1]
    return float(adjoint(target)[0].square().sum() / copies / target.square().sum())


def fits(rank: int | None, seed: int) -> list[dict[str, Any]]:
    """Return the best fit of every arm to one teacher."""
    target = teacher(rank, Generator().manual_seed(seed))
    rows = []
    for r in FIT_RANKS:
        shares = {"lora": lora_fit(target, r)} | {name: mora_fit(target, r, name) for name in COPYING}
        rows += [{"teacher": rank, "seed": seed, "r": r, "arm": name, "share": s} for name, s in shares.items()]
    return rows


def measure() -> dict[str, Any]:
    facts = {"source": source.of_this_process(), "torch": torch.__version__}
    linear = [row for rank in (*TEACHER_RANKS, None) for seed in SEEDS for row in fits(rank, seed)]
    memory = []
    for r in MEMORY_RANKS:
        for load in LOADS:
            for name in LABELS:
                memory.append(at_best_rate(name, r, load))
                print(json.dumps(memory[-1]), flush=True)
    settings = {"D": D, "seeds": SEEDS, "rates": RATES, "steps": STEPS, "known": KNOWN}
    return {**facts, "settings": settings, "linear_teacher": linear, "associative_memory": memory}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mora.analysis.capacity", description=__doc__)
    parser.add_argument("--out", type=output_folder, default=RESULTS, help="the folder of capacity.json, .svg and .md")
    parser.add_argument("--render", action="store_true", help="draw again what was measured")
    args = parser.parse_args(arguments)
    from .capacity_figure import draw, table

    path = args.out / "capacity.json"
    if args.render and not path.is_file():
        print(f"mora.analysis.capacity: {path} does not exist: measure first, without --render", file=sys.stderr)
        return 2
    if not args.render:
        torch.set_num_threads(1)
        measured = json.dumps(measure(), indent=1, sort_keys=True)
        args.out.mkdir(parents=True, exist_ok=True)
        replace_file(path, f"{measured}\n")
    result = json.loads(path.read_text())
    replace_file(path.with_suffix(".md"), table(result))
    print(draw(result, path.with_suffix(".svg")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
