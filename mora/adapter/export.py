"""Export an adapter: mora-export ADAPTER OUTPUT --to merged, or --to lora --rank 64.

Turns a MoRA adapter folder into what needs no MoRA: the merged model, or a LoRA adapter, for PEFT and servers such as vLLM.
A LoRA is exact from a certain rank on and an approximation below it; the error at each rank is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel, convert_to_lora, save_as_lora
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoConfig, AutoTokenizer

from .config import MoraConfig
from .layer import MoraLayer
from .loading import load_checked
from .merged_base import FILE, attached_base, find_file, restore_base
from .model import ANOTHER_BASE

FORMS = ("merged", "lora")
CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


OTHER_BASE = "; name another base with base (--base). For an adapter of the replication suite, run `mora merge FOLDER`"


class ExportError(ValueError):
    """Raised when an adapter cannot be exported. The message is one line."""


def load(adapter: str, base: str | None = None) -> PeftModel:
    """Load the base model with a MoRA adapter on it, on the CPU in the dtype of its checkpoint.

    Where restarts have merged updates into the base, that merged base is restored, which lies beside the adapter.
    base: folder or hub id, by default the one that the adapter names.
    Raises: ExportError.
    """
    if Path(adapter).is_dir() and not Path(adapter, CONFIG_NAME).is_file():
        inside = sorted(path.parent for path in Path(adapter).glob(f"*/{CONFIG_NAME}"))  # adapter before checkpoint-10
        hint = f", such as {inside[0]}" if inside else ""
        raise ExportError(f"{adapter} has no {CONFIG_NAME}: expected the folder of an adapter{hint}")
    with _told(f"{adapter} is no adapter that PEFT can read: adapter_config.json"):
        config = PeftConfig.from_pretrained(adapter)
    if not isinstance(config, MoraConfig):
        restore = ", mora.restore_base(model, folder)" if find_file(adapter) else ""
        raise ExportError(
            f"{adapter} is a {config.peft_type} adapter, not MoRA: load it with PEFT{restore} and call merge_and_unload()"
        )
    where = base or config.base_model_name_or_path
    if not where:
        raise ExportError(f"{adapter} names no base model: give its folder or hub id as base (--base)")
    merged = find_file(adapter)
    if config.restarted and not merged:
        raise ExportError(
            f"{adapter} fits a base that restarts have changed. {FILE}, which holds that base, is missing: copy it from the "
            "folder in which the adapter was saved, or from a checkpoint of the same step"
        )
    saved = _saved_weights(adapter)
    with _told(f"the base model {where} cannot be read", OTHER_BASE):
        model = _base_model(where, config.revision if base is None else None, str(config.task_type), saved)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ANOTHER_BASE)  # it is restored below
        adapted = _with_adapter(model, adapter, where)
    if merged:
        try:
            restore_base(adapted, merged.parent)
        except ValueError as error:
            raise ExportError(str(error)) from error
    return adapted


def _saved_weights(adapter: str) -> dict[str, Tensor]:
    """Return an adapter's weights, by their names in the base model. Raises ExportError."""
    folder = Path(adapter)
    if folder.is_dir() and not any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise ExportError(f"{adapter} has no {SAFETENSORS_WEIGHTS_NAME}, the weights of the adapter")
    with _told(f"{SAFETENSORS_WEIGHTS_NAME} of {adapter} cannot be read"):
        return {_module(name): value for name, value in load_peft_weights(adapter, device="cpu").items()}


def _base_model(where: str, revision: str | None, task: str, saved: dict[str, Tensor]) -> nn.Module:
    """Load the base for a task, with as many labels as the head has that the adapter has saved, which is in no base."""
    name = (
        CLASSES.get(task) or ((AutoConfig.from_pretrained(where, revision=revision).architectures or ["AutoModel"])[0])
    )
    kind, options = getattr(transformers, name), {"revision": revision, "dtype": "auto"}
    model = kind.from_pretrained(where, **options)
    labels = getattr(model.config, "num_labels", None)
    found = {
        len(saved[name])
        for name, value in model.named_parameters()
        if name in saved and value.dim() and len(value) == labels and value.shape[1:] == saved[name].shape[1:]
    } - {labels}
    if len(found) == 1:  # the adapter has the whole head, so that of the base may be lost
        model = kind.from_pretrained(where, num_labels=found.pop(), ignore_mismatched_sizes=True, **options)
    return model


@contextmanager
def _told(what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever PEFT, transformers, safetensors and torch raise of a wrong file into an ExportError of one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        raise ExportError(f"{what}: {type(error).__name__}: {text:.300}{advice}") from error


def _with_adapter(base: nn.Module, adapter: str, where: str) -> PeftModel:
    """Put the adapter on its base, of which every module that has a matrix must be there. Raises ExportError."""
    with _told(f"the weights of {adapter}, its adapter_config.json and the base model {where} do not fit together"):
        model, missing, unexpected = load_checked(base, adapter)
    if dropped := _modules(unexpected):
        raise ExportError(
            f"{adapter} has weights for modules that the base model {where} does not have, or that target_modules of "
            f"adapter_config.json leaves out: {dropped}"
        )
    if lacking := _modules(missing):
        raise ExportError(f"{SAFETENSORS_WEIGHTS_NAME} of {adapter} has no weights for {lacking}")
    for name, layer in model.named_modules():
        if isinstance(layer, MoraLayer) and not layer.matrix("default").isfinite().all():
            raise ExportError(f"{SAFETENSORS_WEIGHTS_NAME} of {adapter}: M of {_module(name)} is NaN or infinite")
    return model


def _modules(keys: list[str]) -> str:
    """Name the modules whose matrices these are, at most four."""
    names = sorted({_module(key.partition(".mora_M")[0]) for key in keys if ".mora_M" in key})
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _module(name: str) -> str:
    return name.removeprefix("base_model.model.")


@torch.no_grad()
def conversion_errors(model: nn.Module, ranks: list[int], adapter: str = "default") -> dict[int, tuple[float, float]]:
    """rank -> (|dW - dW_rank| / |dW| over all layers, that of the worst layer), dW_rank being the best of that rank."""
    squares: dict[int, list[tuple[float, float]]] = {rank: [] for rank in ranks}
    for module in model.modules():
        if isinstance(module, MoraLayer) and adapter in module.mora_M:
            energy = torch.linalg.svdvals(module.fp32_delta_weight(adapter).double()).square()
            for rank in ranks:
                squares[rank].append((energy[rank:].sum().item(), energy.sum().item()))
    errors = {}
    for rank, layers in squares.items():
        lost, total = (sum(values) for values in zip(*layers, strict=True))
        worst = max((beyond / all_ for beyond, all_ in layers if all_), default=0.0)
        errors[rank] = ((lost / total) ** 0.5 if total else 0.0, worst**0.5)
    return errors


def export(adapter: str, output: str, to: str, rank: int | float | None = None, base: str | None = None) -> None:
    """Write an adapter as a merged model or as a LoRA, neither of which needs this package.

    Args:
        adapter: Folder or Hub id of a MoRA adapter.
        output: Folder to write. It must not exist, or be empty.
        to: "merged" or "lora". For "lora" the error of each rank is printed.
        rank: Of the LoRA: an integer, or the share of the energy |ΔW|² to keep, between 0 and 1. Layers that are
            smaller than the integer are filled up with zeros.
        base: Folder or Hub id of the base model. By default the one that the adapter names.

    Raises:
        ExportError: If an argument is not one of those above, the adapter or its base cannot be read, or the rank is too
            large.
    """
    _check(output, to, rank)
    model = load(adapter, base)
    if to == "merged":
        with _told(f"{adapter} cannot be merged into its base model"):
            merged = model.merge_and_unload(safe_merge=True)
        with _told(f"output {output} cannot be written"):
            merged.save_pretrained(output)
        with _told(f"the tokenizer of {adapter}, or of its base model, cannot be copied"):
            _copy_tokenizer(adapter, base or model.peft_config["default"].base_model_name_or_path, output)
        return
    assert rank is not None  # checked above
    _check_base(model, adapter)
    limit = max(_sizes(model).values())
    if rank > limit:
        raise ExportError(f"rank={rank}: the largest layer has a rank of {limit} at most, with which the LoRA is exact")
    shown = sorted(
        {r for r in (2**i for i in range(3, 13)) if r < limit} | ({rank} if isinstance(rank, int) else set())
    )
    print(f"{'rank':>6}  {'error':>7}  {'worst layer':>11}")
    for each, (error, worst) in conversion_errors(model, shown).items():
        print(f"{each:6}  {error:7.4f}  {worst:11.4f}")
    with _told(f"{adapter} cannot be written as a LoRA to {output}"):
        _save_lora(output, model, rank)


def _check(output: str, to: str, rank: int | float | None) -> None:
    """Raise ExportError for what is known to be wrong before a model is loaded."""
    folder = Path(output)
    with _told(f"output {output} cannot be used"):
        is_file, in_use = folder.exists() and not folder.is_dir(), folder.is_dir() and any(folder.iterdir())
        above = next(path for path in (folder, *folder.parents) if path.exists())
    if is_file:
        raise ExportError(f"output {output} is a file: name a folder that is empty or does not exist")
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ExportError(f"output {output} cannot be created: {above} is no folder that can be written")
    if in_use:
        raise ExportError(f"output {output} is not empty: name a folder that is empty or does not exist")
    if to not in FORMS:
        raise ExportError(f"to={to!r}: expected {' or '.join(map(repr, FORMS))}")
    is_rank = isinstance(rank, int) and not isinstance(rank, bool) and rank > 0
    if to == "lora" and not is_rank and not (isinstance(rank, float) and 0 < rank <= 1):
        raise ExportError(
            f"rank={rank!r}: a LoRA needs a positive integer, or the share of the energy to keep, such as 0.99; "
            "mora-export takes it as --rank"
        )


def _check_base(model: PeftModel, adapter: str) -> None:
    """Raise ExportError where a LoRA would be loaded on another base than the one that the adapter fits."""
    if (base := attached_base(model)) and base.count:
        raise ExportError(
            f"restarts merged earlier updates of {adapter} into its base ({FILE}), which a LoRA on the original base "
            "would lack: export it with to='merged' (--to merged)"
        )


def _sizes(model: nn.Module) -> dict[str, int]:
    """Name of each layer -> the largest rank that its update can have."""
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, MoraLayer))
    return {name: min(layer.in_features, layer.out_features) for name, layer in layers}


def _save_lora(output: str, model: PeftModel, rank: int | float) -> None:
    """Save what PEFT's `save_as_lora` does, also where a layer is smaller than the rank, which PEFT refuses.

    Such a layer is filled up with zeros, since servers want one rank for all layers.
    """
    sizes = _sizes(model)
    smallest = min(sizes.values())
    if rank <= smallest:
        return save_as_lora(output, model, rank=rank)
    assert isinstance(rank, int)  # a share is below every size
    config, tensors = convert_to_lora(model, rank=smallest)
    config.r = config.lora_alpha = rank
    config.rank_pattern, config.alpha_pattern = {}, {}
    for name, size in sizes.items():
        k = min(size, rank)
        if k > smallest:
            _, larger = convert_to_lora(model.get_submodule(name), rank=k)
            tensors |= {f"{name}{key}": tensor for key, tensor in larger.items()}
        A, B = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        tensors[A] = pad(tensors[A], (0, 0, 0, rank - k))
        tensors[B] = pad(tensors[B], (0, rank - k))
    Path(output).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(output) / SAFETENSORS_WEIGHTS_NAME)
    config.save_pretrained(output)


def _copy_tokenizer(adapter: str, base: str, output: str) -> None:
    for source in (adapter, base):
        try:
            AutoTokenizer.from_pretrained(source).save_pretrained(output)
            return
        except (OSError, ValueError):
            continue


def _rank(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def main(arguments: list[str] | None = None) -> None:
    parser: Any = argparse.ArgumentParser(prog="mora-export", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("adapter", help="folder or hub id of a MoRA adapter")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--to", choices=FORMS, required=True)
    parser.add_argument("--rank", type=_rank, help="of the LoRA: an integer, or the share of the energy to keep (0.99)")
    parser.add_argument("--base", help="folder or hub id of the base model, where the adapter's own is not meant")
    args = parser.parse_args(arguments)
    try:
        export(args.adapter, args.output, args.to, args.rank, args.base)
    except ExportError as error:
        sys.exit(f"mora-export: {error}")
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
