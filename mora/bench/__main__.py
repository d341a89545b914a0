"""`python -m mora.bench WHAT`: the cost of methods, training and evaluation on this GPU, and the plan beside it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # read when CUDA starts

import torch

from mora.config import source
from mora.config.arguments import positive_int
from mora.io import replace_file

from . import evaluation, layers, loop, plan, quantised, render, step

PACKAGES = ("torch", "transformers", "peft")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mora.bench", description=__doc__)
    parser.add_argument("what", choices=("step", "loop", "evaluation", "plan", "layers", "quantised", "render"))
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="step: the bars alone, under four minutes on an H100")
    extent.add_argument("--small", action="store_true", help="step: the bars of models up to 1.5B, about a minute")
    extent.add_argument("--smoke", action="store_true", help="a tiny model, seconds on a CPU; not written to results/")
    parser.add_argument(
        "--rounds", type=positive_int, default=None, help="how often each is timed: step (default 10), quantised (3)"
    )
    parser.add_argument("--only", default="", help="plan: the cases whose names hold this")
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON, instead of results/bench")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = next((extent for extent in ("smoke", "small", "quick") if getattr(options, extent)), "full")
    if options.what == "render":
        print(render.render())
        return
    if device.type == "cpu" and not options.smoke:
        parser.error("torch sees no GPU here: only --smoke runs on a CPU")
    if options.what == "layers":
        layers.sweep(device, smoke=options.smoke)
        return
    if options.what == "plan":
        _plan(device, options.smoke, options.only, options.out)
        return
    if options.what == "step":
        result = _step(name, options.rounds or 10, device)
    elif options.what == "quantised":
        if find_spec("bitsandbytes") is None:
            parser.error("quantised needs bitsandbytes, which is not installed: pip install bitsandbytes==0.50.2")
        result = _quantised(options.smoke, options.rounds or 3, device)
    else:
        result = (_loop if options.what == "loop" else _evaluation)(options.smoke, device)
    _write(result, f"{options.what}-{name}", options.out, options.smoke)


def _step(extent: str, rounds: int, device: torch.device) -> dict[str, Any]:
    measured = []
    for scenario in step.scenarios(extent):
        print(f"{scenario.shape}, {scenario.batch_size} x {scenario.length}", flush=True)
        measured.append(step.measure(scenario, device, rounds))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {"kind": "step", "extent": extent, "scenarios": measured} | _circumstances(device)


def _loop(smoke: bool, device: torch.device) -> dict[str, Any]:
    return {"kind": "loop"} | loop.compare(loop.SMOKE if smoke else loop.FULL, device) | _circumstances(device)


def _evaluation(smoke: bool, device: torch.device) -> dict[str, Any]:
    measured = evaluation.compare(evaluation.SMOKE if smoke else evaluation.FULL, device)
    return {"kind": "evaluation"} | measured | _circumstances(device)


def _quantised(smoke: bool, rounds: int, device: torch.device) -> dict[str, Any]:
    measured = quantised.compare(quantised.SMOKE if smoke else quantised.FULL, device, rounds)
    return {"kind": "quantised"} | measured | _circumstances(device, (*PACKAGES, "bitsandbytes"))


def _plan(device: torch.device, smoke: bool, only: str, folder: Path | None) -> None:
    """Measure case by case into one file, named after `only`; a second call of the same source resumes there."""
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


def _write(result: dict[str, Any], name: str, folder: Path | None, smoke: bool) -> None:
    if folder is None and smoke:
        print(render.tables(result))
        return
    folder = folder or render.RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{_slug(result['hardware']['device'])}.json"
    replace_file(path, json.dumps(result, indent=1) + "\n")
    print(render.tables(result))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
