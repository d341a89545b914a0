"""Texts packed into a small script: a page opened from a file may load a script, but may fetch nothing else."""

from __future__ import annotations

import base64
import json
import zlib


def script(texts: dict[str, str]) -> str:
    """Return a script that passes the compressed `texts` to `unpack` of report.js. Similar texts in a row compress well."""
    data = base64.b64encode(zlib.compress(json.dumps(texts, ensure_ascii=False).encode(), 9)).decode()
    return f'unpack("{data}");\n'


def texts(packed: str) -> dict[str, str]:
    """Unpack the texts of a `script` element."""
    return json.loads(zlib.decompress(base64.b64decode(packed.split('"')[1])))
