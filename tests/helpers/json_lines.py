"""Writes a JSON Lines file."""

import json
from pathlib import Path
from typing import Any


def write_json_lines(path: Path, *records: Any) -> Path:
    """Write one record per line; return the path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
