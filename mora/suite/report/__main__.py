"""python -m mora.suite.report [--scale smoke]: everything measured as a static site; make report."""

from __future__ import annotations

import argparse
import gc
import sys

from mora.config.arguments import output_folder
from mora.config.hardware_schema import SCALES
from mora.errors import ends_in_one_line

from .. import claims, figures
from .report_data import Gathered
from .site import Site


@ends_in_one_line("mora.suite.report")
def main() -> int:
    args = _arguments()
    gc.disable()  # all that is read is kept to the end, so garbage collections would find nothing
    scales = args.scale or claims.COMPARED
    folder = args.to or figures.output_folder("smoke" if set(scales) == {"smoke"} else "lite", "report")
    first = Site(folder.resolve(), Gathered(scales)).build()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"the report, {size / 1e6:.1f} MB: open {first}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mora.suite.report", description=__doc__)
    parser.add_argument("--scale", nargs="+", choices=SCALES, help=f"default: {', '.join(claims.COMPARED)}")
    parser.add_argument(
        "--to", type=output_folder, metavar="FOLDER", help="default: results/report; of smoke outputs/smoke/report"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
