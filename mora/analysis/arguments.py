"""Singular values of delta W = W_tuned - W_base, by module (Figure 5).

BASE and TUNED are a checkpoint folder, a hub id, or the name of a model of configs/model; TUNED may also be an adapter
folder, whose update is then merged in fp32. Instead of both: --run RUN_DIR, a run's folder, which says what it started from;
what stands in --out already is then left as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mora.config.arguments import device, output_file
from mora.models.arguments import model


def parse(arguments: list[str] | None = None, prog: str = "python -m mora.analysis.spectrum") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("base", nargs="?", type=model, help="what training started from")
    parser.add_argument("tuned", nargs="?", type=model, help="what it ended with")
    parser.add_argument("--run", type=Path, help="a run's folder instead of both")
    parser.add_argument("--out", type=output_file, help="also write every module's measures to this JSON file")
    parser.add_argument("--device", type=device, help="default: cuda if there is a GPU")
    args = parser.parse_args(arguments)
    if (args.run is None) == (args.tuned is None):
        parser.error("give BASE and TUNED, or --run RUN_DIR")
    return args
