"""Files changed at random, plans and configs by values and by text, others by their bytes; how commands must end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection
from copy import deepcopy
from typing import Any

import pytest

from sprunec.cli import main

SECONDS = 10.0
TEXTS = ["", "head", "4", "a\u0000b", "x" * 5000]
ODD: list[Any] = [None, True, -1, 0, 1.5, 2, 10**18, 1e300, *TEXTS, [], [[]], {}, {"num_heads": 1}]
BYTES = ["", '"', "{", "}", "]", ",", "\\", "\x00", "é", "NaN", "-", "9" * 400]


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [spot for key in keys for spot in spots(value[key])]


def changed(document: Any, draw: random.Random) -> Any:
    """One to three values of a copy are gone, renamed, doubled elsewhere or odd."""
    document = deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        if spots(document):
            _change(document, draw)
    return document


def _change(document: Any, draw: random.Random) -> None:
    container, key = draw.choice(spots(document))
    how = draw.randrange(4)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[key + draw.choice(["s", "_", "/~"])] = container.pop(key)
    elif how == 2:
        container[key] = deepcopy(draw.choice([inner[step] for inner, step in spots(document)]))
    else:
        container[key] = deepcopy(draw.choice(ODD))


def changed_text(text: str, draw: random.Random) -> str:
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(text))
        end = min(len(text), at + draw.randrange(4))
        text = text[:at] + draw.choice(BYTES) + text[end:]
    return text


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """One to six bytes, most of them where headers are, and sometimes the end."""
    found, edge = bytearray(content), min(len(content), 2000)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(edge)
        found[draw.choice([at, at, len(found) - 1 - at])] = draw.randrange(256)
    return bytes(found[: draw.randrange(1, len(found))] if draw.random() < 0.2 else found)


def ends(
    arguments: list[str],
    files: Collection[str],
    capsys: pytest.CaptureFixture[str],
    naming: Collection[int] = (1, 3),
) -> int:
    """Run a command -> its exit code, once everything about its end is as it should be.

    Args:
        files: names of which a message has one, where the code is one of `naming`.
    """
    capsys.readouterr()
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sprunec", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    seconds, code, printed = time.monotonic() - started, int(stop.value.code or 0), capsys.readouterr()
    told = "".join(printed)
    assert code in (0, 1, 3, 4), (arguments, code, told)
    assert "Traceback" not in told, told
    assert "the traceback is in" not in told, told
    assert code not in naming or any(name in told for name in files), told
    assert seconds < SECONDS, (arguments, seconds)
    if "--json" in arguments:
        assert isinstance(json.loads(printed.out), dict), printed.out
    return code
