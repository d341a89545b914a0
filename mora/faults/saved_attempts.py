"""The attempts of a check so far, saved beside its table, so that an interrupted check resumes with the next kill."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mora.config.seal import sealed, unsealed
from mora.io import replace_file

from .kills import Attempts


class SavedAttempts:
    """The attempts so far. Those made with another seed or source (`facts`), or in a damaged file, are discarded."""

    def __init__(self, folder: Path | None, facts: dict[str, Any]):
        self.path, self.facts = folder and folder / "faults.counted.json", facts
        self._cases: dict[str, dict[str, Any]] = {}
        if self.path is None or not self.path.exists():
            return
        try:
            values = unsealed(json.loads(self.path.read_text()))
            if values["facts"] == facts:
                self._cases = values["cases"]
            else:
                print(f"{self.path} is of {values['facts']}: counted anew", file=sys.stderr)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            print(f"{self.path} is damaged ({error}): counted anew", file=sys.stderr)

    def of(self, case: str) -> Attempts:
        """Return the attempts at the case."""
        return Attempts(**self._cases.get(case, {"case": case}))

    def save(self, attempts: Attempts) -> None:
        """Write the attempts so far, for a later start."""
        self._cases[attempts.case] = asdict(attempts)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, json.dumps(sealed({"facts": self.facts, "cases": self._cases})) + "\n")

    def done(self) -> None:
        """Remove the file, once the table holds everything."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
