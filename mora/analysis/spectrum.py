"""python -m mora.analysis.spectrum BASE TUNED: singular values of delta W, by module. What is what: arguments.py."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mora.config import run_id, source
from mora.config.load import load_run
from mora.errors import ConfigError, ModelError, MoraError, ends_in_one_line, one_line
from mora.io import locked
from mora.models.load import LOAD_ERRORS, load_model, load_weights, merged_with
from mora.models.shapes import end_of
from mora.results import write_sealed

from .arguments import parse

THRESHOLD = 0.1  # Figure 5 counts singular values above it
RELATIVE = 0.01  # of the largest

Weights = dict[str, Tensor]  # of linear modules but the head, (outputs, inputs), by parameter name


class Pair(NamedTuple):
    """Two models to compare.

    `names` are those of base and tuned; `run` is the id of the run that made the one from the other, if known.
    """

    names: tuple[str, str]
    base: Weights
    tuned: Weights
    run: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return the names of the models, and the source that compared them."""
        models = zip(("base", "tuned"), self.names, (self.base, self.tuned), strict=True)
        described = {key: {"name": name, "sha256": fingerprint(weights)} for key, name, weights in models}
        return {"run_id": self.run, "source": source.of_this_process(), **described}


def fingerprint(weights: Weights) -> str:
    """Return a digest of names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def spectra(base: Weights, tuned: Weights, device: torch.device) -> dict[str, dict[str, float]]:
    """Return the `measures` of delta W for every matrix that both models have, by its name.

    Matrices of equal shape are decomposed together, in fp32.

    Raises:
        ConfigError: The two have no matrix in common, or shapes differ.
    """
    names = [name for name in base if name in tuned]
    if not names:
        raise ModelError("BASE and TUNED have no linear module of one name in common: expected two of one architecture")
    counts: dict[str, dict[str, float]] = {}
    for batch in _by_shape(names, base, tuned):
        delta = torch.stack([tuned[name].float() - base[name].float() for name in batch]).to(device)
        values = torch.linalg.svdvals(delta).cpu()
        unused = (delta == 0).all(-2).sum(-1).cpu()
        counts |= {
            name: measures(s) | {"unused_inputs": int(n)} for name, s, n in zip(batch, values, unused, strict=True)
        }
    return {name: counts[name] for name in names}


def measures(singular_values: Tensor) -> dict[str, float]:
    """Return `above_0.1`, `above_1pct` of the largest, `stable_rank` and `largest` of singular values.

    The stable rank is the squared Frobenius norm over the squared spectral norm.
    """
    s = singular_values.double()
    largest = float(s.max())
    return {
        "above_0.1": int((s > THRESHOLD).sum()),
        "above_1pct": int((s > RELATIVE * largest).sum()) if largest > 0 else 0,
        "stable_rank": float(s.square().sum() / largest**2) if largest > 0 else 0.0,
        "largest": largest,
    }


def by_kind(modules: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the means over the layers of each kind of module (q_proj, ...)."""
    paths = {name: tuple(p for p in name.removesuffix(".weight").split(".") if not p.isdigit()) for name in modules}
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name, values in modules.items():
        groups[".".join(end_of(paths[name], {*paths.values()}))].append(values)
    return {
        kind: {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} | {"layers": len(rows)}
        for kind, rows in groups.items()
    }


def _by_shape(names: list[str], base: Weights, tuned: Weights, at_once: int = 2**26) -> Iterator[list[str]]:
    """Yield the names in batches of one shape, each of at most `at_once` numbers."""
    shapes: dict[torch.Size, list[str]] = defaultdict(list)
    for name in names:
        if base[name].shape != tuned[name].shape:
            raise ModelError(f"{name}: BASE has {tuple(base[name].shape)}, TUNED {tuple(tuned[name].shape)}")
        shapes[base[name].shape].append(name)
    for shape, group in shapes.items():
        size = max(1, at_once // shape.numel())
        yield from (group[i : i + size] for i in range(0, len(group), size))


def of_run(folder: Path) -> Pair:
    """Load a run's base and its merged model, if it has written one, else its adapter. Raises ConfigError."""
    config, tuned = load_run(folder), _trained(folder)
    base, _ = load_model(config.model, config.scale.precision)
    names = (config.model.name, f"{run_id(config)}/{tuned.name}")
    return Pair(names, _weights(base), _tuned_weights(str(tuned), base), run_id(config))


def of_models(base: str, tuned: str) -> Pair:
    """Load two models, or a model and an adapter, by name. Raises ConfigError."""
    loaded = load_weights(base, "fp32")
    return Pair((base, tuned), _weights(loaded), _tuned_weights(tuned, loaded))


def _trained(folder: Path) -> Path:
    """Return the folder of the weights that the run has saved."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} has no config.yaml: expected a folder that run.py made")
    tuned = next((folder / part for part in ("model", "adapter") if (folder / part).is_dir()), None)
    if tuned is None:
        raise ConfigError(
            f"{folder} holds neither model/ nor adapter/: the run has not finished, trained nothing, or was to leave none "
            "(hardware.save_model=false, as a table's searches)"
        )
    return tuned


def _tuned_weights(name: str, base: PreTrainedModel) -> Weights:
    """Return the weights of a checkpoint, or of a copy of `base` with the adapter in folder `name` merged in fp32."""
    if not (Path(name) / "adapter_config.json").is_file():
        return _weights(load_weights(name, "fp32"))
    try:
        return _weights(merged_with(copy.deepcopy(base), name))
    except MoraError:
        raise
    except (*LOAD_ERRORS, RuntimeError) as error:  # the last: an adapter of another base
        raise ModelError(f"adapter {name!r} does not load into BASE: {one_line(error):.300}") from error


def _weights(model: PreTrainedModel) -> Weights:
    """Return the linear weights (out, in) by name; GPT-2's Conv1D keeps its weight the other way round."""
    head = model.get_output_embeddings()
    modules = {f"{name}.weight": m for name, m in model.named_modules() if m is not head}
    linear = {name: m.weight.detach() for name, m in modules.items() if isinstance(m, nn.Linear)}
    return linear | {name: m.weight.detach().T for name, m in modules.items() if isinstance(m, Conv1D)}


def _table(kinds: dict[str, dict[str, float]]) -> str:
    width = max(map(len, kinds))
    head = f"{'':{width}} {'above 0.1':>10} {'above 1%':>10} {'stable rank':>12} {'largest':>9} {'unused inputs':>14}"
    rows = [
        f"{kind:{width}} {k['above_0.1']:10.1f} {k['above_1pct']:10.1f} {k['stable_rank']:12.2f} {k['largest']:9.3f} "
        f"{k['unused_inputs']:14.1f}"
        for kind, k in kinds.items()
    ]
    return "\n".join([head, *rows])


def _measure(pair: Pair, device: str, out: Path | None) -> None:
    source.of_this_process()  # as it is now, not when the JSON is written
    modules = spectra(pair.base, pair.tuned, torch.device(device))
    kinds = by_kind(modules)
    print(f"means over the layers\n{_table(kinds)}")
    if out is not None:
        write_sealed(out, {**pair.facts(), "kinds": kinds, "modules": modules})


@ends_in_one_line("mora.analysis.spectrum")
def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    where = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.run is None:
        _measure(of_models(args.base, args.tuned), where, args.out)
        return 0
    _trained(args.run)  # first: nothing is waited for or written in a folder that is no run's
    with locked(args.run):  # its worker takes that lock too
        if args.out is not None and args.out.is_file():
            print(f"{args.out} exists already: remove it to measure again")
        else:
            _measure(of_run(args.run), where, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
