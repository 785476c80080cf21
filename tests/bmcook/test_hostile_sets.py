"""Hostile pickles in a set are refused, take no memory and do nothing."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sprunec.bmcook.data.arrays import dump_array, read_array
from sprunec.checkpoint.safe_pickle import Refused
from tests.bmcook.test_sets import RECORDS, SIZE, told
from tests.helpers.live_sets import FileInfo, blocks_of, cpm_live, write_v1


class Runs:
    """Would create a file if anything in a pickle were called."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Imports:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.load, ("x.npy",)


HUGE = 1 << 62


def hostile(path: Path) -> dict[str, bytes]:
    array = pickle.dumps(np.arange(300), protocol=4)
    return {
        "a command": pickle.dumps(Runs(path)),
        "a command in an array": pickle.dumps(np.array([Runs(path)], dtype=object)),
        "another function of numpy": pickle.dumps(Imports()),
        "a lying shape": array.replace(b"M,\x01\x85", b"J\xff\xff\xff\x7f\x85"),
        "a shape of two axes": pickle.dumps(np.zeros((4, 2), dtype=np.int64)),
        "lying bytes": array.replace(b"B`\t\0\0", b"B\xff\xff\xff\xff"),
        "a huge bytearray": b"\x80\x05\x96" + HUGE.to_bytes(8, "little") + b"abc.",
        "a huge text": b"\x80\x04\x8d" + HUGE.to_bytes(8, "little") + b"abc.",
        "a huge memo index": b"\x80\x04Nr\xff\xff\xff\xff.",
        "a list that grows itself": b"\x80\x04" + b"(" * 600 + b".",
        "floats": pickle.dumps(np.arange(300.0)),
        "no array": pickle.dumps([1, 2, 3]),
        "nothing": b"\x80\x04.",
        "half an array": array[: len(array) // 2],
        "a persistent name": b"\x80\x04\x8c\x01aQ.",
        "an extension": b"\x80\x04\x82\x01.",
        "an instance": b"\x80\x02(cos\nsystem\no.",
    }


@pytest.mark.parametrize("what", list(hostile(Path("x"))))
def test_hostile_records_are_refused_and_do_nothing(tmp_path: Path, what: str) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS[:3]}, 4096)
    payload = hostile(tmp_path / "ran")[what]
    (tmp_path / "set" / "a").write_bytes(b"".join(blocks_of([dump_array(np.array(RECORDS[0])), payload], 4096)))
    tracemalloc.start()
    message = told(tmp_path / "set", 4096)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()
    place = 2 + len(dump_array(np.array(RECORDS[0])))
    assert message.startswith(f"a: block 0, byte {place}: a record holds ")
    assert "nothing in it was executed; copy the file again" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", [*hostile(Path("x")), "another class", "another version"])
def test_hostile_meta_is_refused_and_does_nothing(tmp_path: Path, what: str) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS[:3]}, SIZE)
    contents = hostile(tmp_path / "ran")
    with cpm_live():
        good = pickle.dumps([FileInfo("a", 0, 1, 1, 1, False)], protocol=4)
    contents["another class"] = good.replace(b"distributed_dataset", b"distributed_datasex")
    contents["another version"] = good.replace(b"K\x01(", b"K\x02(")
    assert contents["another version"] != good != contents["another class"]
    (tmp_path / "set" / "meta.bin").write_bytes(contents[what])
    message = told(tmp_path / "set")
    assert message.startswith("meta.bin: holds ")
    assert "nothing in it was executed; copy the set again" in message
    assert not (tmp_path / "ran").exists()


def test_a_name_is_refused_by_name() -> None:
    content = pickle.dumps(Imports())
    with pytest.raises(Refused, match=r"the name numpy.*load"):
        read_array(io.BytesIO(content))


def test_a_pickle_without_end_is_given_up_early() -> None:
    content = b"\x80\x04" + b"N" * 3_000_000
    with pytest.raises(Refused, match="more than 200 opcodes"):
        read_array(io.BytesIO(content))
