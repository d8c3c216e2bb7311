"""Saved classifiers as somebody else may have written them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def checksum(content: dict[str, Any]) -> str:
    """The checksum of a classifier.json that has these fields, its own left out."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def rewrite(file: Path, **change: Any) -> None:
    """Change fields of a classifier.json, and its checksum with them."""
    content = json.loads(file.read_text(encoding="utf-8")) | change
    content.pop("sha256", None)
    if content["format_version"] != 1:
        content["sha256"] = checksum(content)
    file.write_text(json.dumps(content), encoding="utf-8")
