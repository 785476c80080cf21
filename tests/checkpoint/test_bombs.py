"""Small files that would be large, or endless, once they were read: refused in few words, and in little memory."""

from __future__ import annotations

import json
import resource
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.bmcook.data.sets import read_set
from sprunec.checkpoint.reader import open_tensors, read_state
from sprunec.checkpoint.torch_file import check_torch
from sprunec.compiler.inspect import inspect_model
from sprunec.errors import InputError
from sprunec.mask_files.reading import read_mask_file
from sprunec.models.loading import load
from sprunec.plan.source import LARGEST_FILE, read_source
from tests.conftest import tiny_model
from tests.helpers.small_plans import TINY

MEGABYTES = 200
DOUBLINGS = 200  # each level holds the one before twice


def refused(use: Callable[[Path], Any], path: Path, words: str) -> None:
    """In under a few lines, which name the file, and without memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with pytest.raises(InputError, match=words) as found:
        use(path)
    assert path.name in str(found.value) and len(str(found.value)) < 1500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before < MEGABYTES


def safetensors(path: Path, **tensors: Any) -> Path:
    text = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def entry(*shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}


@pytest.mark.parametrize(
    "shape", [[99] * 300_000, [0, 2**64], [0, 2**62, 2**62], [0] * 65], ids=["long", "wide", "product", "deep"]
)
def test_shapes_that_no_tensor_has(shape: list[int], tmp_path: Path) -> None:
    refused(read_state, safetensors(tmp_path / "a.safetensors", w=entry(*shape)), "w has no shape")


def test_a_name_as_long_as_the_file(tmp_path: Path) -> None:
    refused(open_tensors, safetensors(tmp_path / "a.safetensors", **{"n" * 1_000_000: entry(9)}), "tensor nnn")


def test_a_name_of_the_billionth_layer(tmp_path: Path) -> None:
    shapes = {name: entry(0, *tensor.shape[1:]) for name, tensor in tiny_model().state_dict().items()}
    shapes["segment_embedding.weight"] = shapes["input_embedding.weight"]
    path = safetensors(tmp_path / "a.safetensors", **shapes, **{"encoder.layers.2000000000.x": entry(0)})
    refused(inspect_model, path, "no CPM-Ant checkpoint")


@pytest.mark.parametrize("changes", [{"num_layers": 10**9}, {"num_heads": 10**9}, {"num_layers": []}], ids=str)
def test_a_config_beside_weights_that_claims_too_much(changes: dict[str, Any], tmp_path: Path) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps(TINY | changes))
    refused(load, tmp_path, "is no model config|no tensor|and the config says")


def test_tensors_that_are_larger_than_their_bytes_are_not_copied(tmp_path: Path) -> None:
    state = {name: tensor[:1].expand(2**30, *tensor.shape[1:]) for name, tensor in tiny_model().state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    refused(load, tmp_path, "and the config says")


# --- pickles ---


def doubled(opcodes: bytes) -> bytes:
    """Opcodes that leave on the stack what holds itself twice, as often as `DOUBLINGS` says; {} is a memo's number."""
    return b"".join(opcodes.replace(b"{}", bytes([number])) for number in range(DOUBLINGS))


TUPLES = b")" + doubled(b"q{}h{}\x86")
LISTS = b"]" + doubled(b"q{}]h{}ah{}a")


def archive(path: Path, body: bytes, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as whole:
        for name, content in {"data.pkl": b"\x80\x02" + body + b".", "version": b"3\n", **records}.items():
            whole.writestr(f"archive/{name}", content)
    return path


ENDLESS = "few objects that stand for more than any memory holds"


@pytest.mark.parametrize("read", [read_mask_file, open_tensors])
@pytest.mark.parametrize("body", [LISTS, TUPLES, b"}" + TUPLES + b"Ns"], ids=["lists", "tuples", "key"])
def test_a_file_of_torch_that_holds_itself_without_end(read: Any, body: bytes, tmp_path: Path) -> None:
    refused(read, archive(tmp_path / "a.pt", body), ENDLESS)


@pytest.mark.parametrize("read", [read_mask_file, open_tensors])
def test_a_file_of_torch_that_asks_for_bytes(read: Any, tmp_path: Path) -> None:
    many = b"\x8a\x05" + (2**31).to_bytes(5, "little")
    path = archive(tmp_path / "a.pt", b"cbuiltins\nbytearray\n" + many + b"\x85R")
    refused(read, path, "bytes to be made, which are no tensor")


@pytest.mark.parametrize("new", [True, False], ids=["archive", "older"])
def test_what_torch_saves_is_no_bomb(new: bool, tmp_path: Path) -> None:
    tied = torch.ones(3)
    state = {"a": tied, "b": tied, "c": tied[1:], "d": torch.nn.Parameter(torch.ones(2))}
    torch.save(OrderedDict(state), tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    check_torch(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"cbuiltins\ngetattr\n(" + TUPLES + b"X\x01\0\0\0xtR", ENDLESS),
        (b"cbuiltins\ngetattr\n(" + TUPLES[:51] + b"X\x01\0\0\0xtR", r"the attribute 'x' of \("),
        (TUPLES + b"X\x01\0\0\0x\x93", "a name that is no text"),
    ],
    ids=["attribute", "attribute of few", "name"],
)
def test_a_set_whose_list_of_files_is_tuples_in_tuples(body: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "meta.bin").write_bytes(b"\x80\x04" + body + b".")
    refused(lambda path: read_set(path.parent), tmp_path / "meta.bin", words)


DEEP = b"}" + b")" + b"\x85" * 200_000 + b"Ns"  # hashing such a key would end the process


@pytest.mark.parametrize("read", [read_mask_file, open_tensors])
def test_torch_file_with_deep_key_is_refused(read: Any, tmp_path: Path) -> None:
    refused(read, archive(tmp_path / "a.pt", DEEP), "objects within each other, more than 1,000 deep")


def test_set_with_deep_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta.bin").write_bytes(b"\x80\x04" + DEEP + b".")
    refused(lambda path: read_set(path.parent), tmp_path / "meta.bin", "more than 1,000 deep")


def test_a_tensor_that_is_a_view_of_nothing(tmp_path: Path) -> None:
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0K\1\x85K\1\x85tR"
    refused(open_tensors, archive(tmp_path / "a.pt", b"}X\1\0\0\0a" + view + b"s"), "cannot be read as a checkpoint")


WIDE, NONE = b"\x8a\x08" + (2**62).to_bytes(8, "little"), b"K\0"


@pytest.mark.parametrize("storage", [b"4Float", b"8Half", b"8BFloat16", b"2Double"])  # how many fill 16 bytes
@pytest.mark.parametrize("sizes", [(NONE, WIDE, WIDE), (WIDE, NONE, WIDE), (WIDE, WIDE, NONE), (NONE, NONE, NONE)])
def test_a_view_whose_shape_overflows_is_left_to_torch(
    storage: bytes, sizes: tuple[bytes, bytes, bytes], tmp_path: Path
) -> None:
    count = bytes([int(storage[:1])])
    storage = b"(X\7\0\0\0storagectorch\n" + storage[1:] + b"Storage\nX\1\0\0\0000X\3\0\0\0cpuK" + count + b"tQ"
    shape, strides, rest = b"".join(sizes) + b"\x87", b"K\1" * 3 + b"\x87", b"\x89ccollections\nOrderedDict\n)R"
    body = b"}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + strides + rest + b"tRs"
    path = archive(tmp_path / "a.pt", body, **{"data/0": b"\0" * 16, "byteorder": b"little"})
    if sizes[2] == NONE != sizes[0]:  # torch itself cannot count what lies behind
        refused(open_tensors, path, "cannot be read as a checkpoint")
    else:
        assert read_state(path)["a"].numel() == 0


# --- plans ---


def test_a_plan_with_long_keys_around_many_values(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(f'{{"{"x" * 400_000}": [{",".join("1" * 200_000)}]}}')
    refused(read_source, tmp_path / "plan.json", "under keys as long as these")


def test_a_plan_larger_than_any_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(" " * LARGEST_FILE + "{}")
    refused(read_source, tmp_path / "plan.json", "larger than 1 MB")


# --- shards ---


@pytest.mark.parametrize("name", ["..", "", "a/b", "/etc/hostname", "a\0", "manifest.json", "config.json"])
def test_an_index_that_names_what_is_no_shard_beside_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    refused(open_tensors, tmp_path / "a.index.json", "names a shard outside its own directory")


def test_an_index_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text("[" * 100_000)
    refused(open_tensors, tmp_path / "a.index.json", "this is not an index of shards: it is nested without end")
