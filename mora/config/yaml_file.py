"""Read YAML files, with libyaml if PyYAML was built with it, which is ten times as fast as Python's parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Return the file's value. Raises OSError or yaml.YAMLError."""
    return yaml.load(path.read_text(), SafeLoader)
