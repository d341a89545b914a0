"""The values of the options of MoRA and of its restarts, each spelled once. Imports no torch, so that plans can use it."""

from __future__ import annotations

from typing import Literal

OperatorChoice = Literal["auto", "truncation", "sharing", "decouple", "rotation"]
Groups = Literal["modulo", "contiguous", "contiguous-modulo", "modulo-contiguous"]
Split = Literal["uneven", "padded"]
Pad = Literal["circular", "zeros"]
Pairs = Literal["half_split", "interleaved"]
Overflow = Literal["drop", "fold"]
Rounding = Literal["floor", "official"]  # of r_hat
MergeRounding = Literal["nearest", "stochastic"]
