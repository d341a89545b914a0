"""Texts as one script of little size: a page opened from a file may load a script, and may fetch nothing else."""

from __future__ import annotations

import base64
import json
import zlib


def script(texts: dict[str, str]) -> str:
    """Return a script that hands `texts`, deflated, to `unpack` of report.js; similar neighbours weigh little."""
    data = base64.b64encode(zlib.compress(json.dumps(texts, ensure_ascii=False).encode(), 9)).decode()
    return f'unpack("{data}");\n'


def texts(packed: str) -> dict[str, str]:
    """Unpack the texts of a `script` element."""
    return json.loads(zlib.decompress(base64.b64decode(packed.split('"')[1])))
