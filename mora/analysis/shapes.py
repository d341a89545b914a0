"""Model shapes and set sizes that a plan needs without downloading anything. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mora.config.schema import Model

# The config.json of each model, by the name in configs/model; models from `init` give theirs in model.architecture.
SHAPES: dict[str, dict[str, Any]] = {
    "llama2_7b": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False,
    },
    "smollm2_135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
}  # fmt: skip

# Training sequences where the data decide. A result of the task and scale, where there is one, is asked first.
SEQUENCES: dict[tuple[str, str], int] = {
    ("paper", "tulu2"): 326_154 - 256,  # allenai/tulu-v2-sft-mixture; the paper says 326k; less what is held out
    ("paper", "metamath"): 395_000 - 6_750,  # meta-math/MetaMathQA; the paper says 395k; less 256 of some 15k questions
    ("paper", "biomed"): 213_333,  # configs/task/biomed.yaml, from kongds/MoRA issue 5
    ("paper", "finance"): 213_333,  # configs/task/finance.yaml
    ("lite", "tulu2"): 19_951,  # docs/LOG.md, as prepared from the stand-ins; so the next three
    ("lite", "metamath"): 14_439,
    ("lite", "biomed"): 4_515,
    ("lite", "finance"): 14_106,
    ("smoke", "tulu2"): 64,  # rows of configs/overlay/smoke_tulu2.yaml, less the eight held out
    ("smoke", "metamath"): 64,
}


@dataclass(frozen=True)
class Linear:
    """One kind of linear module and how many layers have it."""

    name: str
    in_features: int
    out_features: int
    count: int

    @property
    def weights(self) -> int:
        return self.in_features * self.out_features * self.count


@dataclass(frozen=True)
class Shape:
    """A Llama: L layers of width H, MLP width I, K key-value outputs, V tokens."""

    layers: int
    hidden: int
    mlp: int
    kv: int
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> list[Linear]:
        """The seven kinds within a layer; the head is apart."""
        h, i, k, n = self.hidden, self.mlp, self.kv, self.layers
        sizes = {"q_proj": (h, h), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (h, h)}
        sizes |= {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}
        return [Linear(name, *size, n) for name, size in sizes.items()]

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def rest(self) -> int:
        """Embeddings, head, norms: what carries no adapter."""
        return self.head * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def in_layers(self) -> int:
        return sum(linear.weights for linear in self.linears)

    @property
    def parameters(self) -> int:
        return self.in_layers + self.rest


def shape_of(model: Model) -> Shape:
    """Raises: ValueError for a model whose shape is neither in its configuration nor here."""
    found = model.architecture or SHAPES.get(model.name)
    if found is None:
        known = ", ".join(SHAPES)
        raise ValueError(f"model.name={model.name!r}: its shape is not known without its weights; known are {known}")
    heads = found["num_attention_heads"]
    kv = found["hidden_size"] // heads * (found.get("num_key_value_heads") or heads)
    return Shape(
        found["num_hidden_layers"], found["hidden_size"], found["intermediate_size"], kv, found["vocab_size"],
        bool(found.get("tie_word_embeddings", False)),
    )  # fmt: skip
