"""Shorten matplotlib's SVG: relative paths, and only the ids and groups that something needs."""

from __future__ import annotations

import re

LONG_PATH = 40  # points
PATHS = re.compile(r'( d=")([^"]*)"')
PLACES = re.compile(r' (?:x|y)="-?\d+\.\d{3,}"|translate\([^)]*\)')
MOVED = re.compile(r' transform="translate\((-?[\d.]+) 0\)"')
PARTS = re.compile(r"([MLCQz])([^MLCQz]*)")
ALONE = re.compile(r"<g>\n((?:<(?:use|path)[^>]*/>|<text[^>]*>[^<]*</text>)\n)</g>\n")
NUMBER = re.compile(r"-?\d+\.\d+")


def shortened(svg: str, keep: str = "") -> str:
    """Return a shorter SVG that draws the same to a hundredth of a point, in long paths to a tenth.

    `keep` is a pattern of ids that stay, beside the ids of clip paths, marks and glyphs.
    """
    kept = rf"[mpc][0-9a-f]{{10}}\"|DejaVu{f'|{keep}' if keep else ''}"
    svg = re.sub(rf' id="(?!{kept})[^"]*"|<!--.*?-->\n?|<metadata>.*?</metadata>', "", svg, flags=re.DOTALL)
    svg = PATHS.sub(lambda match: f'{match[1]}{_path(match[2])}"', svg)
    svg = MOVED.sub(r' x="\1"', svg).replace("DejaVuSans-", "g")
    svg = PLACES.sub(lambda match: NUMBER.sub(lambda n: _number(round(100 * float(n[0])), 100), match[0]), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    while (inner := ALONE.sub(r"\1", svg)) != svg:
        svg = inner
    return svg


def bare(svg: str) -> str:
    """Return the SVG for a page: without rotations by zero, and without font families, which the page's style sets."""
    svg = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-?0 [^\"]*\"", "", svg)
    return svg.replace("xlink:href", "href")


def _path(text: str) -> str:
    """Make moves, lines and curves relative to the previous point.

    Rounding errors do not add up, since positions are rounded, not steps.
    """
    parts = [(letter, [float(n) for n in numbers.split()]) for letter, numbers in PARTS.findall(text)]
    unit = 10 if sum(len(numbers) for _, numbers in parts) > 2 * LONG_PATH else 100
    out, before, start, at = [], "", (0, 0), (0, 0)
    for letter, numbers in parts:
        name = letter.lower()
        if name == "z":
            at = start
            out.append("z")
        else:
            places = [round(unit * n) for n in numbers]
            steps = _joined([place - at[i % 2] for i, place in enumerate(places)], unit)
            repeats = name == before and name != "m"
            out.append((" " if repeats and not steps.startswith("-") else "" if repeats else name) + steps)
            at = (places[-2], places[-1])
            start = at if name == "m" else start
        before = name
    return "".join(out)


def _joined(steps: list[int], unit: int) -> str:
    words = [_number(step, unit) for step in steps]
    return words[0] + "".join(word if word.startswith("-") else f" {word}" for word in words[1:])


def _number(of: int, unit: int) -> str:
    """Return hundredths or tenths as a short decimal: `.5`, `-.25`, `3`."""
    text = f"{of / unit:.{len(str(unit)) - 1}f}".rstrip("0").rstrip(".") or "0"
    return re.sub(r"^(-?)0\.", r"\1.", text) if text not in ("-0", "-") else "0"
