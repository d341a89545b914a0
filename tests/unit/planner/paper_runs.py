"""Runs of the paper's size, by their method."""

from mora.config.cached_composition import compose_cached as compose


def paper(method, *overrides):
    rank = [] if method == "fft" or any(o.startswith("r=") for o in overrides) else ["r=8"]
    return compose(["task=biomed", f"method={method}", *rank, *overrides])
