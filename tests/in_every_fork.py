"""What the fork server does for the forks of tests, after `mora.faults.preloaded`: imports, and what ranks compose."""

from mora.imports import uncollected

with uncollected():
    import pytest  # noqa: F401
    import trainer_runs
    from tiny_runs import tiny_config

    for method in ("lora", "mora", "relora", "remora"):
        tiny_config(method)
        if method.startswith("re"):
            trainer_runs.run_config(method)
