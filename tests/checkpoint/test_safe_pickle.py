"""The one unpickler: what it refuses before anything is made, and that it makes the rest as pickle does."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest

from sprunec.checkpoint.safe_pickle import Refused, check_pickle, load_pickle


@pytest.mark.parametrize("protocol", range(6))
def test_check_pickle_counts_what_is_used_twice_and_no_more(protocol: int) -> None:
    row = [1, 2.5, "x", b"y", None, True, {3}, frozenset([4])]
    check_pickle(io.BytesIO(pickle.dumps({"rows": [row] * 1000, "pair": (row, row)}, protocol)))
    itself: list[Any] = [row]
    itself.append(itself)
    check_pickle(io.BytesIO(pickle.dumps(itself, protocol)))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"NQ.", "a persistent id"),
        (b"]2Na.", None),
        (b"cx\ny\n)R.", "the name x.y"),
        (b"ca\nb\n}b.", "parts for what takes none"),
        (b"Nr\xff\xff\xff\x7f.", "a memo larger than the pickle"),
        (b"(q\0.", "a mark where an object should be"),
        (b"NN0", "a broken pickle"),
        (b"\x95" + (6).to_bytes(8, "little") + b"X\3\0\0\0abc.", None),
    ],
)
def test_load_pickle_makes_only_what_it_has_checked(body: bytes, words: str | None) -> None:
    """Also where a frame ends within an opcode, or an object is on the stack twice."""
    stream = io.BytesIO(b"\x80\x04" + body + b"rest")
    if words is None:
        assert load_pickle(stream, {}) in ("abc", [None])
        assert stream.read() == b"rest"
        return
    with pytest.raises(Refused, match=words):
        load_pickle(stream, {"a.b": dict})


@pytest.mark.parametrize("protocol", range(6))
def test_load_pickle_agrees_with_pickle(protocol: int) -> None:
    row = [1, 2.5, "x" * 70_000, b"y" * 70_000, None, True, {3}, frozenset([4]), 2**70]
    content = pickle.dumps({"rows": [row] * 3, "pair": (row, row)}, protocol)
    names = {f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)}
    names["_codecs.encode"] = str.encode
    names["builtins.bytes"] = names["__builtin__.bytes"] = bytes
    found = load_pickle(io.BytesIO(content), names)
    assert found == pickle.loads(content)
    assert found["pair"][0] is found["rows"][2]
