"""How values and places are written: JSON cut short, and the steps of a JSON pointer."""

from __future__ import annotations

import json
from typing import Any


def escape(key: object) -> str:
    """One step of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")


def unescape(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def show(value: Any, longest: int = 60) -> str:
    """A value as it stands in JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[: longest - 3] + "..."
