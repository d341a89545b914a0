"""MoRA as a PEFT method. Importing this package registers it; nothing here knows of the experiment suite."""

import peft
from packaging.version import Version

if Version(peft.__version__) < Version("0.21.0"):  # before any import of what that PEFT does not have
    raise ImportError(
        f"MoRA needs PEFT 0.21 or newer, which saves trained biases; found {peft.__version__}: pip install -U peft"
    )

from mora.sizes import r_hat_for

from .config import MoraConfig
from .layer import MoraLayer, MoraLinear
from .model import MoraModel
from .operators import OPERATORS, Operator
from .register import register

register()

__all__ = ["OPERATORS", "MoraConfig", "MoraLayer", "MoraLinear", "MoraModel", "Operator", "r_hat_for"]
