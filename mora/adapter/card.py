"""The section on MoRA that is added to the README.md that PEFT writes for a saved adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .merged_base import FILE
from .operators import OPERATORS

if TYPE_CHECKING:
    from .config import MoraConfig

BEGIN, END = "<!-- mora:begin -->", "<!-- mora:end -->"

TEXT = """{begin}
## MoRA

This is a [MoRA](https://arxiv.org/abs/2405.12130) adapter: one square matrix per layer, between two fixed operators.

- base model: {base}, revision {revision}
- operator {operator}, r = {r} (about as many parameters as LoRA of that rank), r_hat = {sizes}
- written by mora {version}{restarts}

```python
import mora  # tells PEFT what MoRA is; without it PEFT says KeyError: 'MORA'
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), "this folder")
```

To use it without that package, export it: `mora-export FOLDER OUTPUT --to merged`, or as a LoRA, `--to lora --rank R`,
{as_lora}.
{end}"""

RESTARTS = f"""
- restarts merged earlier updates into the base, so this adapter fits **only that merged base**, which lies beside it as
  `{FILE}`: load the model as below, then call `mora.restore_base(model, "this folder")`"""


def write_card(folder: Path, config: MoraConfig, sizes: dict[tuple[int, int], int]) -> None:
    """Add the section to `folder`/README.md, or renew it.

    sizes: (in_features, out_features) -> r_hat.
    """
    section = TEXT.format(
        begin=BEGIN,
        end=END,
        base=config.base_model_name_or_path or "unknown",
        revision=config.revision or "main",
        operator=config.operator,
        r=config.r,
        sizes=", ".join(f"{r_hat} ({k} x {d})" for (k, d), r_hat in sorted(sizes.items())),
        version=config.mora_version,
        as_lora="an approximation, whose error at each rank is printed"
        if OPERATORS[config.operator].in_blocks
        else f"which is exact with R = {max(sizes.values())}",
        restarts=RESTARTS if config.restarted or (folder / FILE).is_file() else "",
    )
    path = folder / "README.md"
    text = path.read_text() if path.exists() else ""
    if BEGIN in text:
        text = re.sub(f"{BEGIN}.*{END}", lambda _: section, text, flags=re.DOTALL)
    else:
        text = f"{text.rstrip()}\n\n{section}\n".lstrip()
    path.write_text(text)
