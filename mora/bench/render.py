"""Write the JSON of results/bench/ as tables between two markers of docs/performance.md. The notes around them stay."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mora.config import source
from mora.io import replace_file
from mora.planner import speed
from mora.results import checked
from mora.suite.time_ratios import RatioOfTimes, ratio_of_times

from . import plan
from .models import weights_of

RESULTS = source.ROOT / "results" / "bench"
PAGE = source.ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- measured: begin, written by `make bench` -->", "<!-- measured: end -->"

# (shape, B, T) -> (operator, r) -> the bars on step time and on activation memory (or None), over PEFT LoRA of the same r
BARS: dict[tuple[str, int, int], dict[tuple[str, int], tuple[float, float | None]]] = {
    ("llama2_7b", 8, 1024): {
        ("rotation", 8): (1.00, 1.00),
        ("sharing", 8): (0.95, 0.85),
        ("sharing", 256): (1.05, 0.92),
    },
    ("smollm2_135m", 100, 72): {("rotation", 8): (1.10, None), ("sharing", 8): (1.05, None)},
    ("qwen25_coder_0b5", 50, 72): {("rotation", 8): (1.00, None), ("sharing", 8): (1.00, None)},
    ("qwen25_coder_1b5", 16, 256): {("rotation", 8): (1.00, None), ("sharing", 8): (1.00, None)},
}
AS_LORA = 1.00  # the bar on the time of compiled steps and of decoding, over that of PEFT LoRA of the same r
WORDS = ("met", "missed")
BASE = "floor"  # the name of the model without adapters in the results


def render() -> Path:
    """Write the tables into docs/performance.md.

    Raises:
        SystemExit: The page has lost its markers.
        DamagedFileError: A file of results is not what was measured.
    """
    page = PAGE.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise SystemExit(f"{PAGE.name}: expected the lines {BEGIN!r} and {END!r} once each")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    measured = "\n\n".join(checked(path, tables, speed.AGAIN) for path in sorted(RESULTS.glob("*.json")))
    replace_file(PAGE, f"{head}{BEGIN}\n\n{measured or 'Nothing has been measured yet.'}\n\n{END}{tail}")
    return PAGE


def tables(result: dict[str, Any]) -> str:
    """Return one file of results as Markdown."""
    hardware, packages = result["hardware"], result["packages"]
    where = f"{hardware['device']}, {', '.join(f'{name} {version}' for name, version in packages.items())}"
    made = f"commit {(result['source']['commit'] or 'unknown')[:10]}{', changed' if result['source']['dirty'] else ''}"
    if result["kind"] != "step":
        title, table = KINDS[result["kind"]]
        return f"## {title}\n\n{where}; {made}.\n\n{table(result)}"
    peak = f" A bf16 product of 8192^3: {hardware['product_tflops']} TFLOP/s." if hardware["product_tflops"] else ""
    parts = [f"## Forward and backward, {result['extent']}\n\n{where}; {made}.{peak}"]
    parts += [_step_table(scenario, hardware["product_tflops"]) for scenario in result["scenarios"]]
    return "\n\n".join(parts)


def _table(head: str, rows: Iterable[list[str]]) -> str:
    """Return a table. A row that ends early, with an error instead of measurements, is filled up."""
    columns = head.count("|") - 1
    lines = [f"| {' | '.join(row)} |{' |' * (columns - len(row))}" for row in rows]
    return "\n".join([head, "|" + "---|" * columns, *lines])


def _label(case: dict[str, Any]) -> str:
    return "frozen base" if case["name"] == BASE else str(case["name"])


def _step_table(scenario: dict[str, Any], peak: float | None) -> str:
    cases = scenario["cases"]
    done = {case["name"]: case for case in cases if case["ms"]}
    medians = {name: statistics.median(case["ms"]) for name, case in done.items()}
    tokens = scenario["batch_size"] * scenario["length"]

    def cells(case: dict[str, Any]) -> list[str]:
        if not case["ms"]:
            return [_label(case), case["error"]]
        ms, lora = medians[case["name"]], done.get(f"lora r={case['r']}")
        memory = case["activation_bytes"]
        over_lora = _over_lora(case, lora, "ms")
        memory_ratio = memory / lora["activation_bytes"] if lora and memory else None
        return [
            _label(case),
            _spread(case["ms"]),
            _ratio(ms / medians[BASE] if BASE in medians else None),
            _interval(over_lora),
            _gib(memory, 2),
            _ratio(memory_ratio),
            f"{tokens / ms * 1e3:,.0f}",
            f"{scenario['model_flop'] / ms / 1e9 / peak:.0%}" if peak else "",
            _verdict(scenario, case, over_lora, memory_ratio),
        ]

    rounds = max(len(case["ms"]) for case in cases)
    head = (
        "| | ms, median (min to max) | / frozen base | time / LoRA's | activations, GiB | / LoRA | tokens/s | utilisation "
        "| bar |"
    )
    return (
        f"### {scenario['shape']}, {scenario['batch_size']} x {scenario['length']} tokens, {rounds} rounds\n\n"
        f"{_table(head, map(cells, cases))}"
    )


def _verdict(scenario: dict[str, Any], case: dict[str, Any], time: RatioOfTimes | None, memory: float | None) -> str:
    bars = BARS.get((scenario["shape"], scenario["batch_size"], scenario["length"]), {})
    bar = bars.get((case["operator"], case["r"]))
    if bar is None or not _is_plain(case) or time is None:
        return ""
    verdict = f"time {bar[0]:.2f} {_met(time, bar[0])}"
    if bar[1] is None or memory is None:
        return verdict
    return f"{verdict}, memory {bar[1]:.2f} {WORDS[round(memory, 3) > bar[1]]}"


def _met(time: RatioOfTimes, bar: float) -> str:
    return f"{WORDS[time.exceeds(bar)]}{'' if time.decides(bar) else ', within noise'}"


def _over_lora(case: dict[str, Any], lora: dict[str, Any] | None, times: str) -> RatioOfTimes | None:
    """Return the ratio of a case's times to LoRA's in the same rounds; None if there are no times."""
    return ratio_of_times(case[times], lora[times]) if lora and lora[times] else None


def _is_plain(case: dict[str, Any]) -> bool:
    """Return whether the case is MoRA as a user gets it; the bars are for these cases."""
    return case["method"] == "mora" and case["form"] == "auto" and not case["stock"] and not case.get("checkpointed")


def _compiled_table(scenario: dict[str, Any]) -> str:
    cases = scenario["cases"]
    named = {case["name"]: case for case in cases}

    def cells(case: dict[str, Any]) -> list[str]:
        if not case["ms"]:
            return [_label(case), case["error"]]
        ratio = _over_lora(case, named.get(f"lora r={case['r']}"), "ms")
        first = f"{case['first_step_s']:.0f}"
        return [_label(case), _spread(case["ms"]), _interval(ratio), first, str(case["graphs"]), _as_lora(case, ratio)]

    rounds = max(len(case["ms"]) for case in cases)
    head = "| | ms, median (min to max) | time / LoRA's | first step, s | graphs | bar |"
    return (
        f"### {scenario['shape']}, {scenario['batch_size']} x {scenario['length']} tokens, {scenario['backend']}, "
        f"{rounds} rounds\n\n{_table(head, map(cells, cases))}"
    )


def _decoding_table(scenario: dict[str, Any]) -> str:
    cases, new = scenario["cases"], scenario["new_tokens"]
    named = {case["name"]: case for case in cases}
    rates = {name: new / statistics.median(case["seconds"]) for name, case in named.items()}

    def cells(case: dict[str, Any]) -> list[str]:
        rate, seconds = rates[case["name"]], case["seconds"]
        spread = f"{rate:.1f} ({new / max(seconds):.1f} to {new / min(seconds):.1f})"
        ratio = _over_lora(case, named.get(f"lora r={case['r']}"), "seconds")
        return [_label(case), spread, _ratio(rate / rates[BASE]), _interval(ratio), _as_lora(case, ratio)]

    rounds = len(cases[0]["seconds"])
    head = "| | new tokens/s, median (min to max) | / frozen base | time / LoRA's | bar |"
    return (
        f"### {scenario['shape']}, {new} tokens after {scenario['prompt_tokens']}, {rounds} rounds\n\n"
        f"{_table(head, map(cells, cases))}"
    )


def _as_lora(case: dict[str, Any], time: RatioOfTimes | None) -> str:
    """Return whether a time over LoRA's meets the bar."""
    return _met(time, AS_LORA) if time is not None and _is_plain(case) else ""


def _loop_table(result: dict[str, Any]) -> str:
    data, peak = result["data"], result["hardware"]["product_tflops"]
    flop = 4 * weights_of(result["shape"])  # per real token, without attention, which is 1% at these lengths
    opponents = [row["tokens_per_s"] for row in result["rows"] if row["who"].startswith("HF") and "error" not in row]
    best = max(opponents, default=None)

    def cells(row: dict[str, Any]) -> list[str]:
        named = [row["who"], str(row["micro_batch"])]
        if "error" in row:
            return [*named, row["error"]]
        ratio = _ratio(row["tokens_per_s"] / best if best is not None else None)
        used = f"{row['tokens_per_s'] * flop / 1e12 / peak:.0%}" if peak else ""
        return [*named, f"{row['tokens_per_s']:,.0f}", ratio, used, _gib(row["peak_bytes"], 1)]

    head = "| | micro batch | real tokens/s | / HF Trainer | utilisation | peak memory, GiB |"
    return (
        f"{result['shape']}, {data['samples']} samples of {data['shortest']} to {data['longest']} tokens, "
        f"median {data['median']}, global batch {data['global_batch_size']}.\n\n{_table(head, map(cells, result['rows']))}"
    )


def _evaluation_table(result: dict[str, Any]) -> str:
    """Return the rates of the median round. The ratio is to the opponent's best batch size."""
    data = result["data"]

    def cells(row: dict[str, Any]) -> list[str]:
        named = [row["what"], row["who"], str(row["batch_size"])]
        if "error" in row:
            return [*named, row["error"]]
        opponents = [r for r in result["rows"] if r["what"] == row["what"] and r["who"] != "ours" and "error" not in r]
        best = min((statistics.median(r["seconds"]) for r in opponents), default=None)
        seconds = statistics.median(row["seconds"])
        spread = f"{seconds:.2f} ({min(row['seconds']):.2f} to {max(row['seconds']):.2f}, {len(row['seconds'])})"
        ratio = _ratio(best / seconds if best is not None else None)
        return [*named, f"{row['unit'] / seconds:,.0f}", ratio, spread, _gib(row["peak_bytes"], 1)]

    head = "| | | batch | questions or new tokens/s | / lm-eval | s, median (min to max, rounds) | peak memory, GiB |"
    return (
        f"{result['shape']}, random weights; {data['questions']:,} questions of about {data['median']} tokens with four "
        f"one-token options, and {data['prompts']:,} prompts continued by {data['new_tokens']} tokens.\n\n"
        f"{_table(head, map(cells, result['rows']))}"
    )


def _quantised_table(result: dict[str, Any]) -> str:
    """Return time and memory beside LoRA's on the same base, and the loss before and after some steps."""
    cases, steps = result["cases"], max(len(case.get("losses", ())) for case in result["cases"]) - 1
    loras = {case["base"]: case for case in cases if case["method"] == "lora" and case["ms"]}

    def cells(case: dict[str, Any]) -> list[str]:
        named = [case["name"], _gib(result["base_bytes"][case["base"]], 2)]
        loss = f"{case['losses'][0]:.3f} to {case['losses'][-1]:.3f}" if "losses" in case else "not run"
        if not case["ms"]:
            return [*named, case["error"], "", "", "", loss]
        lora, memory = loras.get(case["base"]), case["activation_bytes"]
        return [
            *named,
            _spread(case["ms"]),
            _interval(_over_lora(case, lora, "ms")),
            _gib(memory, 2),
            _ratio(memory / lora["activation_bytes"] if lora and memory else None),
            loss,
        ]

    (rows, length), (few, short) = result["timed"], result["trained"]
    head = "| | base, GiB | ms, median (min to max) | time / LoRA's | activations, GiB | / LoRA | loss |"
    return (
        f"{result['shape']}, random weights, fp32 adapters under autocast; {rows} x {length} tokens. Loss: before and "
        f"after {steps} steps of AdamW at {result['learning_rate']} on one batch of {few} x {short} random tokens.\n\n"
        f"{_table(head, map(cells, cases))}"
    )


def _plan_table(result: dict[str, Any]) -> str:
    """Return the plan beside measured steps, with differences above 15% in bold, and the range of unsteady steps."""

    def cells(row: dict[str, Any]) -> list[str]:
        if "error" in row:
            return [row["name"], row["error"]]
        prediction, seconds = plan.predict(row), statistics.median(row["step_s"])
        memory = [
            _gib(row["peak_bytes"], 2),
            _gib(prediction.peak_bytes, 2),
            _off(prediction.peak_bytes, row["peak_bytes"]),
        ]
        predicted = f"{prediction.step_s:.4f}" if prediction.step_s else ""
        time = [f"{seconds:.4f}{_unsteady(row['step_s'])}", predicted, _off(prediction.step_s, seconds)]
        return [row["name"], *memory, *time]

    head = (
        "| micro batches x sequences x tokens | peak memory, GiB | plan | difference | s a step | plan | difference |"
    )
    return _table(head, map(cells, result["rows"]))


def _unsteady(seconds: list[float]) -> str:
    return "" if speed.is_steady(seconds) else f" (unsteady: {min(seconds):.4f} to {max(seconds):.4f})"


def _off(predicted: float | None, measured: float | None) -> str:
    if not predicted or not measured:
        return ""
    off = predicted / measured - 1
    return f"**{off:+.0%}**" if abs(off) > plan.TOLERANCE else f"{off:+.0%}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _spread(ms: list[float]) -> str:
    return f"{statistics.median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f})"


def _interval(ratio: RatioOfTimes | None) -> str:
    if ratio is None:
        return ""
    low, high = ratio.interval
    return f"{ratio.median:.3f}" + (f" ({low:.2f} to {high:.2f})" if low < high else "")


def _gib(size: float | None, digits: int) -> str:
    return f"{size / 2**30:.{digits}f}" if size else ""


def _each(table: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    return lambda result: "\n\n".join(map(table, result["scenarios"]))


KINDS = {  # measurements other than "step", whose title varies -> title, and what makes a file's table
    "compiled": ("Forward and backward, compiled", _each(_compiled_table)),
    "decoding": ("Decoding, one sequence, unmerged", _each(_decoding_table)),
    "evaluation": ("Evaluation", _evaluation_table),
    "loop": ("The whole loop", _loop_table),
    "plan": ("The plan against real steps", _plan_table),
    "quantised": ("Quantised bases", _quantised_table),
}
