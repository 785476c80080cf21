"""CPM-Live's sets on disk: what is read, and what is told about those that are broken."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from sprunec.bmcook.data.arrays import read_array
from sprunec.bmcook.data.records import Index, Limits, Records, make_index
from sprunec.bmcook.data.sets import read_set
from sprunec.errors import InputError
from tests.helpers.live_sets import FileInfo, cpm_live, some_records, write_v1, write_v2

LIMITS = Limits(room=64, vocab_size=97, prompt_types=4, segment_types=6)
SIZE = 1024
RECORDS = some_records(40)


def index_of(folder: Path, size: int = SIZE, limits: Limits = LIMITS) -> Index:
    return make_index(read_set(folder, size), limits)


def texts(folder: Path, size: int = SIZE) -> list[list[int]]:
    """Every record as it was laid out, read through the index."""
    found = Records(index_of(folder, size), read_set(folder, size).paths)
    return [[r.task, len(r.segments), *r.segments.ravel().tolist(), *r.tokens.tolist()] for r in found]


def told(folder: Path, size: int = SIZE) -> str:
    with pytest.raises(InputError) as caught:
        index_of(folder, size)
    (diagnostic,) = caught.value.diagnostics
    return f"{Path(diagnostic.file).name}: {diagnostic.message}; {diagnostic.hint}"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_set_of_version_1_is_read_whole(tmp_path: Path, protocol: int) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS[:25], "b": RECORDS[25:]}, SIZE, protocol)
    assert texts(tmp_path / "set") == RECORDS
    index = index_of(tmp_path / "set")
    assert index["file"].tolist() == [0] * 25 + [1] * 15
    assert index["block"].max() + 1 == sum(f.stat().st_size for f in (tmp_path / "set").glob("[ab]")) // SIZE
    assert (np.diff(index["block"]) >= 0).all()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_set_of_version_2_is_read_whole(tmp_path: Path, as_json: bool) -> None:
    write_v2(tmp_path / "set", {"a": RECORDS[:25], "b": RECORDS[25:]}, [SIZE, 3 * SIZE], as_json)
    assert texts(tmp_path / "set", size=77) == RECORDS


def test_a_masked_file_is_skipped_and_its_blocks_keep_their_numbers(tmp_path: Path) -> None:
    files = {"a": RECORDS[:20], "b": RECORDS[20:30], "c": RECORDS[30:]}
    write_v1(tmp_path / "set", files, SIZE, masked="b")
    (tmp_path / "set" / "b").unlink()
    assert texts(tmp_path / "set") == RECORDS[:20] + RECORDS[30:]
    blocks = index_of(tmp_path / "set")["block"]
    assert set(blocks.tolist()) < set(range(blocks.max() + 1))


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("count", [1, 31, 32, 255, 256, 8191, 8192, 70_000])
def test_arrays_of_any_length_and_any_numpy_are_read(count: int, module: str) -> None:
    values = np.arange(count) * 3 - 7
    for protocol in (3, 4):
        content = pickle.dumps(values, protocol=protocol)
        old, new = b"numpy._core", module.encode()
        if protocol == 4:
            old, new = b"\x16numpy._core", bytes([11 + len(module)]) + new
        assert len(old) and old in content
        content = content.replace(old, new, 1)
        stream = io.BytesIO(b"??" + content + b"rest")
        stream.seek(2)
        found = read_array(stream)
        assert stream.tell() == len(content) + 2
        assert np.array_equal(found, values)


@pytest.mark.parametrize("kind", ["i1", "i2", "<i4", ">i4", ">i8", "u1", "u2", "u4"])
def test_arrays_of_other_whole_numbers_are_read(kind: str) -> None:
    content = pickle.dumps(np.arange(100).astype(kind))
    assert read_array(io.BytesIO(content)).tolist() == list(range(100))


def test_a_truncated_file_is_named_with_its_sizes(tmp_path: Path) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS}, SIZE)
    whole = (tmp_path / "set" / "a").read_bytes()
    (tmp_path / "set" / "a").write_bytes(whole[:-100])
    blocks = len(whole) // SIZE
    message = f"a: has {len(whole) - 100:,} bytes, and {blocks} blocks of 1,024 take {len(whole):,}"
    assert told(tmp_path / "set") == f"{message}; the file is not whole: copy it again"


def test_a_wrong_block_size_names_the_right_one(tmp_path: Path) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS}, SIZE)
    assert "give data.block_size 1024 if it was written so" in told(tmp_path / "set", 1 << 24)


def test_a_missing_file_and_a_missing_set_are_named(tmp_path: Path) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS[:9], "b": RECORDS[9:]}, SIZE)
    (tmp_path / "set" / "b").unlink()
    assert told(tmp_path / "set") == "b: there is no such file, and meta.bin names it; copy it, or mask it"
    assert told(tmp_path / "none").startswith("meta.bin: there is no such file; give the directory")


def test_a_bad_marker_is_named_by_block_and_byte(tmp_path: Path) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS}, SIZE)
    content = bytearray((tmp_path / "set" / "a").read_bytes())
    content[2 * SIZE] = 0x1E
    (tmp_path / "set" / "a").write_bytes(content)
    start = "a: block 2, byte 2,048: byte 0x1e stands where a record or the block's end should be; copy the file again"
    assert told(tmp_path / "set").startswith(start)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "a/../../outside", "link", "", ".", "a\0b"])
def test_a_file_outside_the_directory_is_never_read(tmp_path: Path, name: str) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS}, SIZE)
    (tmp_path / "outside").write_bytes((tmp_path / "set" / "a").read_bytes())
    (tmp_path / "set" / "link").symlink_to(tmp_path / "outside")
    with cpm_live():
        (tmp_path / "set" / "meta.bin").write_bytes(pickle.dumps([FileInfo(name, 0, 10, 1, 1, False)]))
    assert told(tmp_path / "set").startswith(f"meta.bin: names the file {name!r}, which is not inside the directory")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"file_name": "a"}',
        '{"file_name": 1, "block_begin": 0, "block_end": 1, "nbytes": 1, "nlines": 1, "mask": 0, "block_size": 9}',
    ],
)
def test_a_broken_line_of_version_2_is_named(tmp_path: Path, line: str) -> None:
    write_v2(tmp_path / "set", {"a": RECORDS}, [SIZE], False)
    meta = tmp_path / "set" / "meta.bin"
    meta.write_text(meta.read_text() + line + "\n")
    with pytest.raises(InputError) as caught:
        read_set(tmp_path / "set")
    (found,) = caught.value.diagnostics
    assert (found.file, found.line) == (str(meta), 2)
    assert found.message.startswith("this line is no entry of a data set, which has file_name, block_begin")


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_version_2_is_read_with_any_line_ends_and_a_mark(tmp_path: Path, ends: bytes, mark: bytes) -> None:
    write_v2(tmp_path / "set", {"a": RECORDS, "b": RECORDS}, [SIZE, SIZE], False)
    meta = tmp_path / "set" / "meta.bin"
    whole = read_set(tmp_path / "set")
    meta.write_bytes(mark + meta.read_bytes().replace(b"\n", ends))
    assert read_set(tmp_path / "set") == whole
    assert len(whole.files) == 2


@pytest.mark.parametrize(("begin", "end"), [(1, 2), (0, 1 << 60), (0, -1)])
def test_lying_block_numbers_are_refused(tmp_path: Path, begin: int, end: int) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS}, SIZE)
    with cpm_live():
        (tmp_path / "set" / "meta.bin").write_bytes(pickle.dumps([FileInfo("a", begin, end, 1, 1, False)]))
    assert "block" in told(tmp_path / "set")


@pytest.mark.parametrize("length", [0, 3, 5, 2000, 0xFFFFFFFF])
def test_a_lying_length_of_version_2_is_refused(tmp_path: Path, length: int) -> None:
    write_v2(tmp_path / "set", {"a": RECORDS[:1]}, [SIZE], True)
    content = bytearray((tmp_path / "set" / "a").read_bytes())
    content[1:5] = length.to_bytes(4, "little")
    (tmp_path / "set" / "a").write_bytes(content)
    message = told(tmp_path / "set")
    assert message.startswith("a: block 0, byte 1: a record holds ")
    assert length == 5 or f"{length:,} bytes by its own word" in message


@pytest.mark.parametrize("values", ["[1, 1.5]", "[true]", '["a"]', "[99999999999999999999]", "{}", "[" * 90_000])
def test_json_that_is_no_list_of_numbers_is_refused(tmp_path: Path, values: str) -> None:
    write_v2(tmp_path / "set", {"a": [json.loads("[0]")]}, [1 << 17], True)
    data = values.encode()
    block = b"\x1f" + (len(data) + 4).to_bytes(4, "little") + data
    (tmp_path / "set" / "a").write_bytes(block.ljust(1 << 17, b"\0"))
    assert told(tmp_path / "set").startswith("a: block 0, byte 1: a record holds ")


def test_a_set_that_changes_under_a_run_is_told(tmp_path: Path) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS}, SIZE)
    records = Records(index_of(tmp_path / "set"), read_set(tmp_path / "set", SIZE).paths)
    (tmp_path / "set" / "a").write_bytes(bytes((tmp_path / "set" / "a").stat().st_size))
    with pytest.raises(InputError, match="the set has changed: run again"):
        records[0]
