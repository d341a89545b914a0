"""MoRA as a PEFT method. Importing this package registers it; nothing here knows of the experiment suite."""

from .config import MoraConfig
from .layer import MoraLayer, MoraLinear
from .model import MoraModel
from .operators import OPERATORS, Operator, square_size
from .register import register

register()

__all__ = ["OPERATORS", "MoraConfig", "MoraLayer", "MoraLinear", "MoraModel", "Operator", "square_size"]
