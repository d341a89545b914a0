"""Whether a table may use the result of a run, and whether the run must be repeated."""

from __future__ import annotations

from typing import Any

from mora import digests
from mora.config import RunConfig, source
from mora.config.run_id import log_path
from mora.errors import DamagedFileError
from mora.results import STORE, RunResult, log_digest
from mora.train import log


def result_of(config: RunConfig) -> RunResult | None:
    """Return the result of exactly this run; None if it was not made. Raises DamagedFileError if its file is damaged."""
    return STORE.of(config)


def log_of(config: RunConfig, result: RunResult) -> list[dict[str, Any]]:
    """Return the rows of the log beside the result, none if there is no log. Raises DamagedFileError if it is another's."""
    path, rows = log_path(config), log.read(log_path(config))
    if rows and result.log_sha256 is None:
        digests.check(path)
    elif rows and result.log_sha256 != log_digest(path.read_text()):
        raise DamagedFileError(f"{path} is damaged: it is not the log that its result was written with; restore it")
    return rows


def rejection_reason(result: RunResult, scale: str) -> str | None:
    """Return why the result may not enter a table of this scale; None if it may.

    The run must have ended, and except at scale smoke its source must be that of a commit. `source.dirty` records that: it
    is false if that was so at the run, or was verified when the result was brought in. A null is not enough.
    """
    if result.status not in ("done", "diverged"):
        return f"it ended as {result.status!r}"
    if result.scale != scale:
        return f"it is of scale {result.scale}"
    if scale == "smoke" or result.source.dirty is False:
        return None
    if result.source.dirty:
        return "its source was changed"
    return "its commit is unknown; scripts/collect_results.py looks for it"


def reportable(result: RunResult | None, scale: str) -> RunResult | None:
    """Return the result if it may enter a table of this scale, else None."""
    return None if result is None or rejection_reason(result, scale) else result


def is_current(result: RunResult | None, scale: str) -> bool:
    """Return whether the run need not be repeated.

    It need not if its result is usable, or if a repetition would be no better: the source here, too, is changed (or of no
    known commit), and is the one that made the result. So a suite on changed source comes to an end; once that source
    differs or is committed, the runs are repeated.
    """
    if result is None:
        return False
    if reportable(result, scale):
        return True
    here, made_by = source.of_this_process(), result.source
    same = here["dirty"] is not False and here["fingerprint"] == made_by.fingerprint
    committed = result.model_copy(update={"source": made_by.model_copy(update={"dirty": False})})
    return same and rejection_reason(committed, scale) is None


def done(config: RunConfig) -> bool:
    """Return whether the run has a result and need not be repeated."""
    return is_current(result_of(config), config.scale.name)
