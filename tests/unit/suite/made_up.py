"""Results written for a test, as a worker would write them."""

import json
import os

from mora.config.run_id import result_path


def write(run, metrics, status="done", dirty=False, steps=(), trainable=1234, log_rows=(), **changed):
    """`metrics` at the last step and at `steps`. `changed` replaces top-level fields of the result."""
    path = result_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    last = 0 if not run.method.trains else run.last_step if run.knows_steps else 77
    result = {
        "status": status,
        "last_step": last,
        "metrics": {str(step): metrics for step in (*steps, last)},
        "source": {"commit": None, "fingerprint": "", "dirty": dirty},
        "parameters": {"trainable": trainable},
        "config": run.model_dump(mode="json"),
    } | changed
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    os.replace(partial, path)  # at once, as a worker does: a suite may be looking
    if log_rows:
        path.with_suffix(".log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log_rows))
    return path
