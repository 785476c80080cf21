"""Headers of GGUF files: what the package writes is read, and whatever a file claims, it is an error with its name."""

from __future__ import annotations

import random
import resource
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES

from sprunec.checkpoint.gguf_file import LARGEST, MOST_ITEMS, PACKINGS, Packed, read_gguf
from sprunec.checkpoint.reader import open_tensors
from sprunec.errors import InputError
from tests.helpers.gguf_bytes import put, tensor, text, whole

QUANTIZED = ("F32", "F16", "BF16", "Q8_0", "Q4_0")  # by the package, which reads the others only
KINDS = (*QUANTIZED, "Q4_K", "Q6_K", "IQ4_XS", "Q2_K")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file by the package, with a tensor of each of several kinds."""
    path, source = tmp_path_factory.mktemp("gguf") / "model.gguf", np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_head_count_kv([3, 1])
    writer.add_token_list(["a", "Ġb", "日本", ""])
    writer.add_token_scores([0.5, -1.0, 2.0, 0.0])
    writer.add_add_bos_token(True)
    for kind in KINDS:
        numbers = source.standard_normal((6, 512)).astype(np.float32)
        way = GGMLQuantizationType[kind]
        entries, nbytes = GGML_QUANT_SIZES[way]
        if kind in QUANTIZED:
            packed = quants.quantize(numbers, way)
        else:  # factors of 1, and any codes
            packed = source.integers(0, 60, (6, 512 // entries * nbytes), np.uint8)
        writer.add_tensor(f"{kind}.weight", packed, raw_dtype=way)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_the_package_writes_is_read(written: Path) -> None:
    found = read_gguf(written)
    assert found.metadata["llama.block_count"] == 2
    assert found.metadata["llama.attention.head_count_kv"] == [3, 1]
    assert found.metadata["tokenizer.ggml.tokens"] == ["a", "Ġb", "日本", ""]
    assert found.metadata["tokenizer.ggml.scores"] == [0.5, -1.0, 2.0, 0.0]
    assert found.metadata["tokenizer.ggml.add_bos_token"] is True
    assert {place.shape for place in found.tensors.values()} == {(6, 512)}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_the_packages_own(written: Path, kind: str) -> None:
    name, tensors = f"{kind}.weight", open_tensors(written)
    place = tensors.places[name]
    raw = np.fromfile(written, np.uint8, place.extent, offset=place.start)
    way = GGMLQuantizationType[kind]
    wanted = torch.from_numpy(quants.dequantize(raw.reshape(6, -1), way).copy())
    assert tensors.dtype(name) == torch.float32
    assert tensors[name].equal(wanted)
    assert tensors.rows(name, [4, 1, 2]).equal(wanted[[4, 1, 2]])


def test_kinds_are_of_the_packages_sizes() -> None:
    for number, packing in PACKINGS.items():
        kind = GGMLQuantizationType(number)
        assert (packing.name, packing.entries, packing.nbytes) == (kind.name, *GGML_QUANT_SIZES[kind])


def test_numbers_that_are_none_are_refused_when_they_are_read(tmp_path: Path) -> None:
    data = np.array([1.0, np.nan] * 16, np.float16).tobytes()
    tensors = open_tensors(put(tmp_path / "x.gguf", whole({}, [tensor("a.weight", [2, 16], 1, 0)], data)))
    assert isinstance(tensors.places["a.weight"], Packed)
    with pytest.raises(InputError, match="a.weight has numbers that are not finite"):
        tensors["a.weight"]


ONE = [tensor("a", [4], 0, 0)]
BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "goes on behind its 0 bytes"),
    "another file": (b"PK\x03\x04" + bytes(40), "does not begin with GGUF"),
    "the first version": (whole({}, head=b"GGUF\x01\0\0\0"), "of version 1"),
    "big-endian": (whole({}, head=b"GGUF\0\0\0\x03"), "big-endian"),
    "many tensors": (whole({}, counts=(2**63, 0)), "9,223,372,036,854,775,808 tensors"),
    "many keys": (whole({}, counts=(0, 2**32)), "4,294,967,296 keys"),
    "a list without end": (
        whole({})[:16] + struct.pack("<Q", 1) + text("a") + struct.pack("<IIQ", 9, 4, 2**60),
        "entries",
    ),
    "a long text": (whole({})[:16] + struct.pack("<Q", 1) + text("a") + struct.pack("<IQ", 8, 2**40), "bytes long"),
    "a list of lists": (whole({})[:16] + struct.pack("<Q", 1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "kind 9"),
    "an unknown kind": (whole({})[:16] + struct.pack("<Q", 1) + text("a") + struct.pack("<I", 99), "kind 99"),
    "no truth": (
        whole({})[:16] + struct.pack("<Q", 1) + text("a") + struct.pack("<IB", 7, 2),
        "neither true nor false",
    ),
    "no UTF-8": (whole({"a": ("str", b"\xff\xfe")}), "not UTF-8"),
    "a key without a name": (whole({"": ("u32", 1)}), "is called ''"),
    "a key of control characters": (whole({"a\x1b[2J": ("u32", 1)}), "is called 'a"),
    "a tensor twice": (whole({}, [*ONE, *ONE], bytes(64)), "'a' twice"),
    "many dims": (whole({}, [tensor("a", [1] * 5, 0, 0)], bytes(64)), "has 5 dims"),
    "no shape": (whole({}, [tensor("a", [2**40, 2**40], 0, 0)], bytes(64)), "none that there can be"),
    "an empty dim": (whole({}, [tensor("a", [0], 0, 0)], bytes(64)), "none that there can be"),
    "half a block": (whole({}, [tensor("a", [2, 33], 8, 0)], bytes(640)), "none that there can be"),
    "an unknown packing": (whole({}, [tensor("a", [4], 4, 0)], bytes(64)), "kind 4"),
    "behind the file": (whole({}, [tensor("a", [4], 0, 2**40)], bytes(64)), "would lie behind"),
    "not aligned": (whole({}, [tensor("a", [4], 0, 4)], bytes(64)), "between two places"),
    "over each other": (whole({}, [*ONE, tensor("b", [4], 0, 0)], bytes(64)), "overlap"),
    "a strange alignment": (whole({"general.alignment": ("u32", 24)}, ONE, bytes(64)), "aligned to 24"),
    "no alignment": (whole({"general.alignment": ("str", "x")}, ONE, bytes(64)), "aligned to 'x'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_file_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    content, why = BROKEN[name]
    path = put(tmp_path / "x.gguf", content)
    with pytest.raises(InputError) as told:
        read_gguf(path)
    assert told.value.exit_code == 3
    assert told.value.diagnostics[0].file == str(path)
    assert why in told.value.diagnostics[0].message


def test_a_key_twice_is_told(tmp_path: Path) -> None:
    pair = text("a") + struct.pack("<II", 4, 1)
    with pytest.raises(InputError, match="'a' twice"):
        read_gguf(put(tmp_path / "x.gguf", whole({})[:16] + struct.pack("<Q", 2) + pair + pair))


def mutated(content: bytes, pick: random.Random) -> bytes:
    """Change some bytes of a header, numbers of eight of them, or its length."""
    found, way = bytearray(content), pick.random()
    if way < 0.2:
        return bytes(found[: pick.randrange(len(found))])
    for _ in range(pick.randint(1, 4)):
        place = pick.randrange(4 if way < 0.9 else 0, len(found) - 8)
        if pick.random() < 0.5:
            found[place] = pick.choice((0, 1, 9, 127, 128, 255, pick.randrange(256)))
        else:
            number = pick.choice((0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
            found[place : place + 8] = number.to_bytes(8, "little")
    return bytes(found)


def test_changed_headers_are_read_or_told_and_take_little_memory(written: Path, tmp_path: Path) -> None:
    pick, content, path, told = random.Random(7), written.read_bytes(), tmp_path / "x.gguf", 0
    header = min(place.start for place in read_gguf(written).tensors.values())
    before = peak()
    for number in range(2500):
        path.write_bytes(mutated(content[:header], pick) + (content[header:] if number % 3 else b""))
        found = reading(path)
        assert found is None or found.diagnostics[0].file == str(path)
        told += found is not None
    assert told > 1200
    assert peak() - before < 200e6


def reading(path: Path) -> InputError | None:
    """Read a header: nothing else is raised than what this gives."""
    try:
        read_gguf(path)
    except InputError as error:
        return error
    return None


def test_the_longest_header_takes_bounded_memory(tmp_path: Path) -> None:
    """A list of as many short texts as a header may have: the most that one can take."""
    entries = b"".join(text(f"{number:09}") for number in range(MOST_ITEMS))
    assert len(entries) < LARGEST
    listed = text("a") + struct.pack("<IIQ", 9, 8, MOST_ITEMS) + entries
    path, before = put(tmp_path / "x.gguf", whole({})[:16] + struct.pack("<Q", 1) + listed), peak()
    assert len(read_gguf(path).metadata["a"]) == MOST_ITEMS
    assert peak() - before < 400e6
    assert read_gguf(path).tensors == {}


def peak() -> float:
    """Give the most bytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024.0 if sys.platform == "linux" else 1.0)
