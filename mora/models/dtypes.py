"""The names that configurations have for number formats."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
