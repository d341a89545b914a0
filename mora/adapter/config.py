"""MoraConfig: what a MoRA adapter is, as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from peft.config import PeftConfig
from peft.utils import PeftType

import mora
from mora.choices import Groups, OperatorChoice, Overflow, Pad, Pairs, Rounding, Split

from .card import write_card

UNSCALED = "M's output is added as it is; tune the learning rate instead"
INSTEAD = dict.fromkeys(("lora_alpha", "mora_alpha", "alpha_pattern", "use_rslora"), UNSCALED) | {  # of LoRA's options
    "lora_dropout": "use mora_dropout",
    "dropout": "use mora_dropout",
    "init_lora_weights": "use init_weights; M = 0 by default",
    "fan_in_fan_out": "leave it out, the layout of a Conv1D is known",
    "use_dora": "for DoRA use LoraConfig(use_dora=True)",
    "rank": "use r",
}


@dataclass
class MoraConfig(PeftConfig):
    """Describe a MoRA adapter (arXiv:2405.12130), as PEFT stores it in adapter_config.json.

    Args:
        r: Rank of the LoRA whose number of trainable parameters MoRA has at most, with rhat_rounding="floor". M is
            r_hat x r_hat with r_hat = floor(sqrt((in_features + out_features) r)), at most min(in_features,
            out_features), and even for "rotation".
        target_modules: Names of modules, a regular expression, or "all-linear".
        exclude_modules: Names of modules, or a regular expression, to leave alone.
        operator: How inputs are compressed to r_hat values and outputs decompressed from them: "truncation" (Eq. 4),
            "sharing" (Eq. 6), "decouple" (Eq. 8), "rotation" (Eq. 9 to 11), or "auto", which takes rotation if
            hidden_size / r_hat is greater than 8 and sharing otherwise. "auto" is resolved in this object, as PEFT resolves
            its default target_modules, and saved resolved: give each model a configuration of its own.
        groups: Which inputs "sharing" ties together (Appendix B): "modulo" (official type 1), "contiguous" (type 2), or
            one kind for inputs and another for outputs: "contiguous-modulo" (type 3), "modulo-contiguous" (type 4).
        split: What happens to contiguous groups of unequal size: "uneven" (official) or "padded" (Algorithm 1).
        pad: What fills the last block or group: "circular" (the first inputs again, official) or "zeros".
        pairs: Which planes "rotation" rotates: "half_split" (j, j + r_hat / 2; official) or "interleaved" (2j, 2j + 1;
            Eq. 10).
        overflow: What "decouple" and "rotation" do with blocks beyond the last output, in modules with more inputs than
            outputs: "fold" adds them to the first output blocks, "drop" (official) ignores their inputs.
        rhat_rounding: "floor" (the paper) or "official" (to the nearest integer, which can exceed LoRA's parameter
            count).
        rank_pattern: Module name or regular expression -> r, for modules that take another r.
        mora_dropout: Dropout probability of the adapter's input.
        init_weights: True sets M to zero, so that the adapter starts as a no-op. False draws it at random, for tests.
        bias: Which biases train: "none", "all" or "mora_only".
        modules_to_save: Modules that train in full and are saved with the adapter.
        layers_to_transform: Indices of the layers to adapt, as in LoraConfig.
        layers_pattern: Name of the list of layers that `layers_to_transform` counts in, as in LoraConfig.
        trainable_token_indices: Tokens whose embeddings train, as in LoraConfig.
        mora_version: Version of this package, filled in.
        restarted: Whether restarts have merged updates into the base that this adapter fits, filled in by `RestartCallback`.
            Set it to False in a configuration that is read from such an adapter to make a new one.
        target_parameters: LoraConfig's option. Refused.
        ensure_weight_tying: LoraConfig's option. Refused.

    Raises:
        ValueError: If a value is not one of those above. The message names the field, the value and what was expected.
    """

    r: int = field(default=8, metadata={"help": "Rank of the LoRA with at least as many trainable parameters."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave alone."})
    operator: OperatorChoice = "auto"
    groups: Groups = "modulo"
    split: Split = "uneven"
    pad: Pad = "circular"
    pairs: Pairs = "half_split"
    overflow: Overflow = "fold"
    rhat_rounding: Rounding = "floor"
    rank_pattern: dict[str, int] = field(default_factory=dict)
    mora_dropout: float = 0.0
    init_weights: bool = True
    bias: Literal["none", "all", "mora_only"] = "none"
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    mora_version: str | None = None
    restarted: bool = False
    target_parameters: InitVar[Any] = None
    ensure_weight_tying: InitVar[Any] = None

    def __new__(cls, *_: Any, **options: Any) -> MoraConfig:
        for name in options.keys() & INSTEAD.keys():
            raise TypeError(f"MoraConfig has no {name}: {INSTEAD[name]}")
        return super().__new__(cls)

    def __post_init__(self, target_parameters: Any, ensure_weight_tying: Any) -> None:
        super().__post_init__()
        if target_parameters:
            raise ValueError(
                f"target_parameters={target_parameters!r:.200}: MoRA adapts linear modules, not bare parameters such as "
                "fused experts; name modules in target_modules, or use LoRA for these"
            )
        if ensure_weight_tying:
            raise ValueError(
                f"ensure_weight_tying={ensure_weight_tying!r:.200}: MoRA does not adapt embeddings, so there is nothing to "
                "tie; an adapted head is untied when it is merged"
            )
        self.peft_type = PeftType.MORA
        self.mora_version = self.mora_version or mora.__version__
        self._sizes: dict[tuple[int, int], int] = {}  # (in_features, out_features) -> r_hat, where the model has put it
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str) and not _are_names(value):
                raise ValueError(f"{name}={value!r:.200}: expected a list of names, a regular expression or None")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        self._check_choices()
        if not isinstance(self.rank_pattern, dict):
            raise ValueError(f"rank_pattern={self.rank_pattern!r:.200}: expected a dict, module name -> r")
        for name, r in {"r": self.r, **{f"rank_pattern[{k!r}]": v for k, v in self.rank_pattern.items()}}.items():
            if not isinstance(r, int) or isinstance(r, bool) or r <= 0:
                raise ValueError(f"{name}={r!r:.200}: expected a positive integer, the rank of the LoRA to match")
        if not isinstance(self.mora_dropout, (int, float)) or not 0 <= self.mora_dropout < 1:
            raise ValueError(f"mora_dropout={self.mora_dropout!r:.200}: expected 0 <= mora_dropout < 1")
        if not isinstance(self.init_weights, bool):  # LoRA's "gaussian" and others would pass for True
            raise ValueError(
                f"init_weights={self.init_weights!r:.200}: expected True (M = 0) or False (M random, for tests)"
            )
        if isinstance(self.target_modules, str) and (self.layers_to_transform is not None or self.layers_pattern):
            raise ValueError(
                f"layers_to_transform and layers_pattern need target_modules as a list of names, got the string "
                f"{self.target_modules!r:.200}"
            )

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, **kwargs)
        if self._sizes:
            write_card(Path(save_directory), self, self._sizes)

    def _check_choices(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            choices = get_args(hints[f.name])
            if choices and all(isinstance(c, str) for c in choices) and getattr(self, f.name) not in choices:
                raise ValueError(f"{f.name}={getattr(self, f.name)!r:.200}: expected one of {', '.join(choices)}")


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple, set)) and all(isinstance(name, str) for name in value)
