"""python -m mora.analysis.spectrum BASE TUNED: singular values of delta W = W_tuned - W_base, by module (Figure 5).

BASE and TUNED are a checkpoint folder, a hub id, or the name of a model of configs/model; TUNED may also be an adapter
folder, whose update is then merged in fp32. Instead of both: --run RUN_DIR, a run's folder, which says what it started from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mora.config.arguments import device
from mora.config.compose import CONFIG_DIR, ConfigError, load, one_line
from mora.config.schema import Model
from mora.train.log import replace_file

THRESHOLD = 0.1  # Figure 5 counts singular values above it
RELATIVE = 0.01  # of the largest

Weights = dict[str, Tensor]  # by parameter name


def spectra(base: dict[str, Tensor], tuned: dict[str, Tensor], device: torch.device) -> dict[str, dict[str, float]]:
    """Of every matrix of both that is a module's weight within a layer, by its name: `measures` of its delta W.

    Equal shapes are decomposed together, in fp32.
    Raises: ConfigError where the two have no such matrix in common, or shapes differ.
    """
    names = [name for name in base if name in tuned and base[name].dim() == 2 and ".layers." in name]
    if not names:
        raise ConfigError("BASE and TUNED have no layer weight of one name in common: are they of one architecture?")
    found: dict[str, dict[str, float]] = {}
    for batch in _by_shape(names, base, tuned):
        delta = torch.stack([tuned[name].float() - base[name].float() for name in batch]).to(device)
        values = torch.linalg.svdvals(delta).cpu()
        unused = (delta == 0).all(-2).sum(-1).cpu()
        found |= {
            name: measures(s) | {"unused_inputs": int(n)} for name, s, n in zip(batch, values, unused, strict=True)
        }
    return {name: found[name] for name in names}


def measures(singular_values: Tensor) -> dict[str, float]:
    """`above_0.1`, `above_1pct` of the largest, `stable_rank` (squared Frobenius over squared spectral norm), `largest`."""
    s = singular_values.double()
    largest = float(s.max())
    return {
        "above_0.1": int((s > THRESHOLD).sum()),
        "above_1pct": int((s > RELATIVE * largest).sum()) if largest > 0 else 0,
        "stable_rank": float(s.square().sum() / largest**2) if largest > 0 else 0.0,
        "largest": largest,
    }


def by_kind(modules: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means over the layers of each kind of module (q_proj, ...)."""
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name, values in modules.items():
        groups[name.removesuffix(".weight").rsplit(".", 1)[-1]].append(values)
    return {
        kind: {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} | {"layers": len(rows)}
        for kind, rows in groups.items()
    }


def _by_shape(names: list[str], base: Weights, tuned: Weights, at_once: int = 2**26) -> Iterator[list[str]]:
    """Names in batches of one shape, each of at most `at_once` numbers."""
    shapes: dict[torch.Size, list[str]] = defaultdict(list)
    for name in names:
        if base[name].shape != tuned[name].shape:
            raise ConfigError(f"{name}: BASE has {tuple(base[name].shape)}, TUNED {tuple(tuned[name].shape)}")
        shapes[base[name].shape].append(name)
    for shape, group in shapes.items():
        size = max(1, at_once // shape.numel())
        yield from (group[i : i + size] for i in range(0, len(group), size))


def of_run(folder: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Of a run's folder: its merged model where it has written one, else its adapter. Raises: ConfigError."""
    from mora.train.model import load_model

    written = folder / "config.yaml"
    if not written.is_file():
        raise ConfigError(f"{folder} has no config.yaml: expected a folder that run.py made")
    config = load(yaml.safe_load(written.read_text()))
    tuned = next((folder / part for part in ("model", "adapter") if (folder / part).is_dir()), None)
    if tuned is None:
        raise ConfigError(
            f"{folder} holds neither model/ nor adapter/: the run has not ended, or it trained no adapter"
        )
    base, _ = load_model(config.model, config.scale.precision)
    return spectra(_weights(base), _tuned_weights(str(tuned), base), device)


def _load(name: str) -> nn.Module:
    """A model of configs/model, a folder or a hub id, in fp32 on the CPU."""
    from transformers import AutoModelForCausalLM

    from mora.train.model import LOAD_ERRORS, load_model

    path = CONFIG_DIR / "model" / f"{name}.yaml"
    if path.is_file():
        return load_model(Model.model_validate(yaml.safe_load(path.read_text())), "fp32")[0]
    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except LOAD_ERRORS as error:
        raise ConfigError(f"{name!r} cannot be loaded: {one_line(error):.300}") from error


def _tuned_weights(name: str, base: nn.Module) -> dict[str, Tensor]:
    """Weights of a checkpoint, or of a copy of `base` with the adapter in folder `name` merged in fp32."""
    if not (Path(name) / "adapter_config.json").is_file():
        return _weights(_load(name))
    import copy

    from peft import PeftModel

    import mora  # noqa: F401, registers MoRA with PEFT
    from mora.train.model import LOAD_ERRORS

    wide = copy.deepcopy(base).float()
    try:
        return _weights(PeftModel.from_pretrained(wide, name).merge_and_unload())
    except (*LOAD_ERRORS, RuntimeError) as error:  # the last: an adapter of another base
        raise ConfigError(f"adapter {name!r} does not load into BASE: {one_line(error):.300}") from error


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def _table(kinds: dict[str, dict[str, float]]) -> str:
    head = f"{'':10} {'above 0.1':>10} {'above 1 %':>10} {'stable rank':>12} {'largest':>9} {'unused inputs':>14}"
    rows = [
        f"{kind:10} {k['above_0.1']:10.1f} {k['above_1pct']:10.1f} {k['stable_rank']:12.2f} {k['largest']:9.3f} "
        f"{k['unused_inputs']:14.1f}"
        for kind, k in kinds.items()
    ]
    return "\n".join([head, *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mora.analysis.spectrum", description=__doc__)
    parser.add_argument("base", nargs="?", help="what training started from")
    parser.add_argument("tuned", nargs="?", help="what it ended with")
    parser.add_argument("--run", type=Path, help="a run's folder instead of both")
    parser.add_argument("--out", type=Path, help="also write every module's measures to this JSON file")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    if (args.run is None) == (args.tuned is None):
        parser.error("give BASE and TUNED, or --run RUN_DIR")
    try:
        where = torch.device(args.device)
        if args.run is not None:
            modules = of_run(args.run, where)
        else:
            base = _load(args.base)
            modules = spectra(_weights(base), _tuned_weights(args.tuned, base), where)
    except ConfigError as error:
        print(f"mora.analysis.spectrum: {error}", file=sys.stderr)
        return 2
    kinds = by_kind(modules)
    print(f"means over the layers\n{_table(kinds)}")
    if args.out is not None:
        result: dict[str, Any] = {"kinds": kinds, "modules": modules}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.out, json.dumps(result, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
