"""Decisions taken after results were seen, and deviations from the sources, both read from the pages in docs/."""

from __future__ import annotations

import itertools
import re
from html import escape
from typing import NamedTuple

from markdown_it import MarkdownIt

from mora.config.source import ROOT

DECIDED = "What was decided after results were seen"
CHANGED = "What changed when these rules came"
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")


class Section(NamedTuple):
    title: str
    html: str
    source: str


def sections() -> list[Section]:
    """Return the dated decisions of docs/claims.md, docs/DEVIATIONS.md by its sections, and the log's topics."""
    claims = _parts("docs/claims.md")
    decided = [part for part in claims if part.title.startswith((DECIDED, CHANGED))]
    return [*decided, *_parts("docs/DEVIATIONS.md"), *_dated("docs/LOG.md")]


def _parts(name: str) -> list[Section]:
    text = (ROOT / name).read_text()
    blocks = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return [
        Section(title.strip(), html(body, title.strip()), name)
        for title, _, body in (block.partition("\n") for block in blocks)
    ]


def _dated(name: str) -> list[Section]:
    """Return the sections whose title begins with a date: what was tried, including negative results."""
    return [part for part in _parts(name) if re.match(r"\d{4}-\d\d-\d\d", part.title)]


def html(markdown: str, title: str) -> str:
    """Convert Markdown to HTML that needs no other page.

    Links into the repository become plain text. Each table scrolls on its own and has its own accessible name.
    """
    text = MarkdownIt("commonmark", {"html": False}).enable("table").render(LINK.sub(r"\1", markdown))
    numbers = itertools.count(1)
    opened = '<div class="wide" tabindex="0" role="region" aria-label="{}, table {}"><table>'
    text = re.sub("<table>", lambda _: opened.format(escape(title), next(numbers)), text)
    return text.replace("</table>", "</table></div>")
