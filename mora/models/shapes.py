"""Shapes of models, for plans, which download nothing. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mora.config.model_schema import Model
from mora.errors import one_line

from . import known


@dataclass(frozen=True)
class Linear:
    """One kind of linear module, and the number of layers that have it."""

    name: str
    in_features: int
    out_features: int
    count: int

    @property
    def weights(self) -> int:
        return self.in_features * self.out_features * self.count


@dataclass(frozen=True)
class Shape:
    """The shape of a causal model.

    Attributes:
        hidden: The width of the layers.
        mlp: The width between the two halves of the feed-forward layer.
        queries: The number of outputs of attention's query projection.
        kv: The number of outputs of its key projection, and of its value projection.
        linears: The linear modules by kind, without the head.
        small: The number of parameters of norms, biases and learned positions.
    """

    layers: int
    hidden: int
    mlp: int
    queries: int
    kv: int
    vocabulary: int
    tied: bool
    linears: tuple[Linear, ...]
    small: int

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def rest(self) -> int:
        """The number of parameters that carry no adapter: embeddings, head and norms."""
        return self.head * (1 if self.tied else 2) + self.small

    @property
    def in_layers(self) -> int:
        return sum(linear.weights for linear in self.linears)

    @property
    def parameters(self) -> int:
        return self.in_layers + self.rest


class UnknownShape(ValueError):
    """Raised if only the weights tell the shape of a model."""


def shape_of(model: Model) -> Shape:
    """Return the model's shape, from its configuration or, for earlier results, by the name of a known model.

    For a checkpoint's folder it comes from config.json, and transformers is imported.

    Raises:
        UnknownShape: The shape is not known without the weights, or cannot be read from config.json.
    """
    pinned = known.named(model.name)
    if (fields := model.architecture or model.shape or (pinned.shape if pinned else None)) is not None:
        return llama(fields)
    if model.source == "pretrained" and (Path(model.path or "") / "config.json").is_file():
        try:
            return _of_folder(str(model.path))
        except Exception as error:  # such as of an architecture that names its sizes otherwise
            raise UnknownShape(
                f"model.path={model.path!r}: its config.json does not give its shape ({one_line(repr(error)):.200}): say it "
                "in model.shape"
            ) from error
    raise UnknownShape(
        f"model.name={model.name!r}: its shape is unknown without its weights: say it in model.shape; known are "
        f"{', '.join(known.names())}, and every folder given as model.path"
    )


def llama(fields: dict[str, Any]) -> Shape:
    """Return the shape of a Llama, or of a Qwen2 (attention_bias), from the fields of its config.json."""
    h, i, n = fields["hidden_size"], fields["intermediate_size"], fields["num_hidden_layers"]
    heads = fields["num_attention_heads"]
    width = fields.get("head_dim") or h // heads
    q, k = heads * width, (fields.get("num_key_value_heads") or heads) * width
    sizes = {"q_proj": (h, q), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (q, h)}
    sizes |= {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}
    linears = tuple(Linear(name, *size, n) for name, size in sizes.items())
    biases = n * (q + 2 * k) if fields.get("attention_bias") else 0
    tied = bool(fields.get("tie_word_embeddings", False))
    return Shape(n, h, i, q, k, fields["vocab_size"], tied, linears, (2 * n + 1) * h + biases)


@lru_cache
def _of_folder(folder: str) -> Shape:
    """Return the shape of any causal model, which is built without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    sizes: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for name, module in model.named_modules():
        if module is not head and isinstance(module, (torch.nn.Linear, Conv1D)):
            size = tuple(module.weight.shape)
            path = tuple(part for part in name.split(".") if not part.isdigit())
            sizes.setdefault(path, []).append(size if isinstance(module, Conv1D) else size[::-1])
    kinds = {path: ".".join(end_of(path, {*sizes})) for path in sizes}
    linears = tuple(Linear(kinds[p], *size, of_kind.count(size)) for p, of_kind in sizes.items() for size in {*of_kind})
    tied, vocabulary = head is None or head.weight is embedding.weight, embedding.weight.shape[0]
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    kv = width * (getattr(config, "num_key_value_heads", None) or heads)
    mlp = next((v for n in ("intermediate_size", "ffn_dim", "n_inner") if (v := getattr(config, n, None))), 4 * hidden)
    total = sum(p.numel() for p in model.parameters())
    small = total - sum(linear.weights for linear in linears) - vocabulary * hidden * (1 if tied else 2)
    return Shape(config.num_hidden_layers, hidden, mlp, heads * width, kv, vocabulary, tied, linears, small)


def end_of(path: tuple[str, ...], paths: set[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the shortest end of a path that tells it from all others: q_proj, or attn.c_proj if mlp.c_proj exists, too."""
    ends = (path[-n:] for n in range(1, len(path)))
    return next((end for end in ends if sum(p[-len(end) :] == end for p in paths) == 1), path)
