"""A GGUF file as an ordinary checkpoint, which is dequantised once, on all cores, into the cache."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from mora.config.model_schema import Model
from mora.data import manifest
from mora.errors import ModelError, one_line
from mora.io import cache_dir, locked

from . import files
from .dtypes import DTYPES

BLOCK = 2**19  # quantised bytes that a thread processes at a time


def as_folder(model: Model) -> Path:
    """Return the folder of the model's checkpoint for transformers. The first call makes it, in one of the processes.

    Raises:
        ModelError: The file is missing, not the pinned one, or not readable.
    """
    dtype = model.dtype or "fp32"
    tied = {True: "-tied", False: "-untied", None: ""}[model.tie_head]
    folder = cache_dir() / "models" / f"{model.name}-{(model.sha256 or '')[:12]}-{dtype}{tied}"
    if (folder / manifest.NAME).exists() and manifest.damage(folder) is None:
        return folder
    file = files.find(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent):
        if (wrong := manifest.damage(folder)) or not (folder / manifest.NAME).is_file():
            if wrong:
                print(f"{wrong}: the weights are made again from {file}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            files.check(model, file)
            _convert(file, folder, DTYPES[dtype], model.tie_head)
    return folder


def tokenizer_of(model: Model) -> Any:
    """Return the tokenizer in the model's file, without dequantising weights. Raises ModelError if the file is missing."""
    file = files.find(model)
    with _read_once(file):
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _convert(file: Path, folder: Path, dtype: torch.dtype, tie_head: bool | None) -> None:
    """Write the folder atomically."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".dequantise-") as temporary:
        done = Path(temporary) / "model"
        try:
            with _read_once(file) as reader:
                plain = _plain_model(file, reader, dtype, tie_head)
                AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(done)
        except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
            raise ModelError(f"{file} cannot be read as GGUF: {one_line(error):.300}") from error
        plain.save_pretrained(done)
        manifest.write(done)
        shutil.move(done, folder)


def _plain_model(file: Path, reader: _Reader, dtype: torch.dtype, tie_head: bool | None) -> PreTrainedModel:
    """Return the model that transformers makes of the file, but with plain weights.

    The model that transformers makes knows that its weights were quantised, and cannot be saved.
    """
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = _weights(reader, model, dtype)
    embedding, head = _names_of(model, model.get_input_embeddings()), _names_of(model, model.get_output_embeddings())
    if tie_head and head in weights:
        weights[embedding] = weights.pop(head)
    if tie_head is not None and tie_head != config.tie_word_embeddings:
        config.tie_word_embeddings = tie_head
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    if config.tie_word_embeddings or head not in weights:
        weights[head] = weights[embedding]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model


def _names_of(model: PreTrainedModel, module: torch.nn.Module) -> str:
    return next(f"{name}.weight" for name, other in model.named_modules() if other is module)


def _weights(reader: _Reader, model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return every tensor of the file under its name in the model, dequantised on as many threads as there are cores.

    Names and the order of rows are those of transformers. Each block of weights has its own scales, so rows can be
    split among threads with the same values, bit for bit. numpy releases the interpreter's lock while it computes.
    """
    architecture = reader.fields["general.architecture"].contents()
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    made: dict[str, Any] = {"tensors": {}}  # where tensor processors for mixtures of experts put their tensors
    loaded = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for tensor in reader.tensors:
            rows = max(1, BLOCK // max(1, tensor.data[:1].nbytes))
            parts = [tensor.data[start : start + rows] for start in range(0, len(tensor.data), rows)]
            kind = tensor.tensor_type
            joined = np.concatenate(list(pool.map(gguf.dequantize, parts, [kind] * len(parts))))
            one = processor.process(weights=joined, name=tensor.name, tensor_key_mapping=names, parsed_parameters=made)
            if one.name in names:
                loaded[names[one.name]] = torch.from_numpy(np.ascontiguousarray(one.weights)).to(dtype)
    return loaded | {name: weight.to(dtype) for name, weight in made["tensors"].items()}


class _Reader(gguf.GGUFReader):
    """gguf's reader made three times as fast: the memory map becomes an array, whose slices are cheap."""

    @property
    def data(self) -> Any:
        return self._array

    @data.setter
    def data(self, mapped: Any) -> None:
        self._array = np.asarray(mapped)


@contextmanager
def _read_once(file: Path) -> Iterator[_Reader]:
    """Context manager: yield a reader of the file, which transformers gets, too, whenever it opens the file.

    The file has half a million fields, so it is read once. The map of names, for which transformers asks once per module, is
    also kept.
    """
    reader, before = _Reader(file), (gguf.GGUFReader, gguf.get_tensor_name_map)
    gguf.GGUFReader, gguf.get_tensor_name_map = lambda *args, **kwargs: reader, cache(before[1])
    try:
        yield reader
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before
