"""`python -m mora.bench WHAT`: the cost of methods, training and evaluation on this GPU, and the plan beside it."""

from __future__ import annotations

import argparse
import os
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # CUDA reads this when it starts
# As in the suite's runs. Where users' own loops are measured, the case says which kernels it has.
os.environ.setdefault("MORA_KERNELS", "fused")

import torch

from mora.config import source
from mora.config.arguments import output_folder, positive_int
from mora.errors import MoraError, one_line
from mora.results import write_sealed

from . import compiled, decoding, evaluation, layers, loop, plan, profile, quantised, render, step, unsloth_lora

PACKAGES = ("torch", "transformers", "peft")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mora.bench", description=__doc__)
    parser.add_argument("what", choices=(*MEASUREMENTS, "plan", "layers", "profile", "render"))
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="step: the bars alone, under four minutes on an H100")
    extent.add_argument(
        "--small", action="store_true", help="step: the bars of models up to 1.5B; compiled, loop: SmolLM2"
    )
    extent.add_argument("--smoke", action="store_true", help="a tiny model, seconds on a CPU; not written to results/")
    parser.add_argument(
        "--rounds", type=positive_int, default=None, help="how often each is timed: step, compiled (10), quantised (3)"
    )
    parser.add_argument("--only", default="", help="plan, profile: the cases whose names hold this")
    parser.add_argument("--out", type=output_folder, default=None, help="folder of the JSON, instead of results/bench")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extent_name = next((name for name in ("smoke", "small", "quick") if getattr(options, name)), "full")
    if extent_name not in ("full", "smoke", *EXTENTS.get(options.what, ())):
        parser.error(f"{options.what} has no --{extent_name}")
    if options.what != "render" and device.type == "cpu" and not options.smoke:
        parser.error("torch sees no GPU here: only --smoke runs on a CPU")
    if options.what == "quantised" and find_spec("bitsandbytes") is None:
        parser.error("quantised needs bitsandbytes, which is not installed: pip install bitsandbytes==0.50.2")
    try:
        _run(options, extent_name, device)
    except MoraError as error:
        parser.exit(2, f"mora.bench: {one_line(error)}\n")


def _run(options: argparse.Namespace, extent: str, device: torch.device) -> None:
    if options.what == "render":
        print(render.render())
    elif options.what == "layers":
        layers.sweep(device, smoke=options.smoke)
    elif options.what == "profile":
        profile.show(device, smoke=options.smoke, only=options.only)
    elif options.what == "plan":
        _plan(device, options.smoke, options.only, options.out)
    else:
        _measure(options.what, extent, options.rounds, device, options.out)


def _measure(what: str, extent: str, rounds: int | None, device: torch.device, folder: Path | None) -> None:
    """Measure, and after each scenario write all results so far. Without a folder, those of "smoke" are only printed."""
    circumstances = _circumstances(device, (*PACKAGES, "bitsandbytes") if what == "quantised" else PACKAGES)
    folder = folder or (None if extent == "smoke" else render.RESULTS)
    path = folder and folder / f"{what}-{extent}-{_slug(circumstances['hardware']['device'])}.json"
    for measured in MEASUREMENTS[what](extent, rounds, device):
        result = {"kind": what} | measured | circumstances
        if path is not None:
            write_sealed(path, result)
    print(render.tables(result))
    if path is not None:
        print(f"\n{path}")


def _step(extent: str, rounds: int | None, device: torch.device) -> Iterator[dict[str, Any]]:
    measured = []
    for scenario in step.scenarios(extent):
        print(f"{scenario.shape}, {scenario.batch_size} x {scenario.length}", flush=True)
        measured.append(step.measure(scenario, device, rounds or 10))
        yield {"extent": extent, "scenarios": measured}
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _compiled(extent: str, rounds: int | None, device: torch.device) -> Iterator[dict[str, Any]]:
    return _growing(compiled.measure(_plan_of(compiled, extent), device, rounds or 10))


def _decoding(extent: str, rounds: int | None, device: torch.device) -> Iterator[dict[str, Any]]:
    return _growing(decoding.measure(_plan_of(decoding, extent), device))


def _growing(scenarios: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield, after each scenario, all results so far."""
    measured = []
    for scenario in scenarios:
        measured.append(scenario)
        yield {"scenarios": measured}


def _plan_of(benchmark: Any, extent: str) -> Any:
    return getattr(benchmark, extent.upper())


def _loop(extent: str, rounds: int | None, device: torch.device) -> Iterator[dict[str, Any]]:
    measured = loop.compare(loop.PLANS[extent], device)
    yield measured
    yield measured | {"rows": measured["rows"] + unsloth_lora.compare(extent, device)}


def _evaluation(extent: str, rounds: int | None, device: torch.device) -> Iterator[dict[str, Any]]:
    yield evaluation.compare(_plan_of(evaluation, extent), device)


def _quantised(extent: str, rounds: int | None, device: torch.device) -> Iterator[dict[str, Any]]:
    return quantised.measure(_plan_of(quantised, extent), device, rounds or 3)


MEASUREMENTS = {
    "step": _step,
    "compiled": _compiled,
    "decoding": _decoding,
    "loop": _loop,
    "evaluation": _evaluation,
    "quantised": _quantised,
}
EXTENTS = {"step": ("quick", "small"), "compiled": ("small",), "loop": ("small",)}  # besides "full" and "smoke"


def _plan(device: torch.device, smoke: bool, only: str, folder: Path | None) -> None:
    """Measure case by case into one file, named after `only`. Another call by the same source resumes there."""
    circumstances = _circumstances(device)
    words = [word for word in ("plan", "smoke" if smoke else "", only) if word]
    with tempfile.TemporaryDirectory() as scratch:
        where = folder or (Path(scratch) if smoke else render.RESULTS)
        path = where / f"{_slug(' '.join([*words, circumstances['hardware']['device']]))}.json"
        print(render.tables(plan.measure(device, path, circumstances, smoke, only)))


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", words.lower()).strip("-")


def _circumstances(device: torch.device, packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {
        "hardware": {"device": name, "product_tflops": step.product_tflops(device)},
        "packages": {package: version(package) for package in packages},
        "source": source.describe(source.EVERYTHING),
    }


if __name__ == "__main__":
    main()
