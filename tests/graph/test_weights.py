"""NaN and infinity in weights, teachers and masks are refused in the reading that hashes the file, and are placed."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sprunec
from sprunec import file_digests
from sprunec.checkpoint import finite
from sprunec.checkpoint.reader import open_tensors
from sprunec.errors import InputError
from sprunec.families.cpm_ant.huggingface_names import KEYS
from sprunec.graph.weights import weights_digest
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, plan, save_weights, write

NAN, INF = math.nan, math.inf
QUERY = "encoder.layers.1.self_att.self_attention.project_q.weight"
OUTPUT = "encoder.layers.1.ffn.ffn.w_out.weight"


def refused(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        weights_digest(path)
    assert {finding.code for finding in caught.value.diagnostics} == {"not-finite"}
    return [finding.message for finding in caught.value.diagnostics]


def with_one(value: float, *place: int, shape: tuple[int, ...] = (3, 4)) -> Tensor:
    found = torch.zeros(shape)
    found[place] = value
    return found


def part_of(whole: Tensor, row: int, column: int) -> Tensor:
    """Its transposed lower right part, with one NaN where the whole has it."""
    whole[row, column] = NAN
    return whole[1:, 1:].t()


@pytest.mark.parametrize("write_file", [save_file, torch.save])
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (with_one(NAN, 2, 3), "w has 1 NaN, the first at [2, 3]"),
        (with_one(INF, 0, 0), "w has 1 infinite, the first at [0, 0]"),
        (with_one(-INF, 2, 0).bfloat16(), "w has 1 infinite, the first at [2, 0]"),
        (with_one(NAN, 1, 3).bfloat16(), "w has 1 NaN, the first at [1, 3]"),
        (with_one(NAN, 0, 1).half(), "w has 1 NaN, the first at [0, 1]"),
        (with_one(INF, 2, 2).double(), "w has 1 infinite, the first at [2, 2]"),
        (torch.tensor(NAN), "w has 1 NaN"),
        (torch.tensor([0.0, INF, NAN, NAN]), "w has 2 NaN and 1 infinite, the first at [1]"),
        (torch.full((70, 80), NAN), "w has 5,600 NaN, the first at [0, 0]"),
    ],
)
def test_every_dtype_shape_and_place_is_told(
    tensor: Tensor, words: str, write_file: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / ("a.safetensors" if write_file is save_file else "a.pt")
    write_file({"v": torch.ones(3), "w": tensor}, path)
    assert refused(path) == [words]


def test_views_are_looked_at_and_what_lies_between_their_rows_is_not(tmp_path: Path) -> None:
    torch.save({"w": part_of(torch.zeros(6, 6), 2, 4)}, tmp_path / "view.pt")
    assert refused(tmp_path / "view.pt") == ["w has 1 NaN, the first at [3, 1]"]
    torch.save({"w": torch.tensor([[NAN]]).expand(500, 500)}, tmp_path / "one.pt")
    assert refused(tmp_path / "one.pt") == ["w has 1 NaN, the first at [0, 0]"]
    torch.save({"w": part_of(torch.zeros(6, 6), 0, 3)}, tmp_path / "gap.pt")
    assert weights_digest(tmp_path / "gap.pt") == hashlib.sha256((tmp_path / "gap.pt").read_bytes()).hexdigest()


@pytest.mark.parametrize("gap", range(8))
def test_a_number_at_the_edge_of_what_is_read_at_a_time_is_seen(
    gap: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unaligned, too: the tensor begins `gap` bytes behind the header, and a number lies across two readings."""
    monkeypatch.setattr(finite, "CHUNK_BYTES", 64)
    place: dict[str, Any] = {"dtype": "F32", "shape": [5, 20], "data_offsets": [gap, gap + 400]}
    header = json.dumps({"w": place, "g": {"dtype": "U8", "shape": [gap], "data_offsets": [0, gap]}}).encode()
    for bad in range(100):
        numbers = np.zeros(100, np.float32)
        numbers[bad] = np.nan
        path = tmp_path / f"{bad}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\xff" * gap + numbers.tobytes())
        assert refused(path) == [f"w has 1 NaN, the first at [{bad // 20}, {bad % 20}]"]


def test_the_shard_that_has_it_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.tensor([1.0, NAN])}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as caught:
        weights_digest(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'two.safetensors'}: error: b has 1 NaN, the first at [1]")


def test_many_tensors_are_counted_and_five_are_named(tmp_path: Path) -> None:
    torch.save({f"w{number}": torch.tensor([NAN]) for number in range(9)}, tmp_path / "a.pt")
    told = refused(tmp_path / "a.pt")
    assert len(told) == 5 and told[-1].endswith("4 more tensors have some")


@pytest.mark.parametrize(
    "extra", [torch.zeros(2, dtype=torch.uint16), torch.zeros(3).to(torch.float8_e4m3fn), torch.eye(3).to_sparse()]
)
def test_files_that_torch_alone_can_read_are_looked_at_when_they_are_opened(extra: Tensor, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": extra}, tmp_path / "good.pt")
    assert set(open_tensors(tmp_path / "good.pt")) == {"w", "x"}
    torch.save({"w": torch.tensor([1.0, NAN]), "x": extra}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"w has 1 number that is not finite, the first at \[1\]"):
        open_tensors(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[NAN], [1.0]]).expand(2, 500),
        torch.tensor(NAN).expand(3, 3, 3),
        torch.tensor([0.0, NAN, 0.0]).as_strided((2, 2), (1, 1)),
    ],
)
def test_a_view_of_more_numbers_than_its_file_has_is_refused_unread(tensor: Tensor, tmp_path: Path) -> None:
    torch.save({"w": tensor, "x": torch.eye(3).to_sparse()}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=f"a tensor of {tensor.numel():,} entries, and the file has fewer"):
        open_tensors(tmp_path / "bad.pt")


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "shard.ckpt"])
def test_a_tensor_that_was_saved_without_its_data_is_refused(name: str, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": torch.empty(3, 4, device="meta")}, tmp_path / name)
    with pytest.raises(InputError, match="x has no data: it was saved from torch's meta device"):
        open_tensors(tmp_path / name)


def test_what_the_store_has_hashed_is_looked_at_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "WORTH_KNOWING", 0)
    monkeypatch.setattr(file_digests, "_KNOWN", {})
    torch.save({"w": torch.tensor([NAN])}, tmp_path / "a.pt")
    file_digests.file_digest(tmp_path / "a.pt")  # as it does when it verifies a link to a user's file
    assert refused(tmp_path / "a.pt") == ["w has 1 NaN, the first at [0]"]
    torch.save({"w": torch.tensor([1.0])}, tmp_path / "b.pt")
    digest = weights_digest(tmp_path / "b.pt")
    monkeypatch.setattr(finite, "read_weights", lambda *_: pytest.fail("it is read twice"))
    assert weights_digest(tmp_path / "b.pt") == digest


# --- in plans ---


def told(directory: Path, *passes: dict[str, Any], **model: Any) -> str:
    content = plan(*passes, model={"config": MODEL, "checkpoint": "weights.pt"} | model)
    with pytest.raises(InputError) as caught:
        sprunec.lower(sprunec.read_plan(write(directory, content)))
    assert not (directory / "out").exists()
    return str(caught.value)


def masks(directory: Path, heads: tuple[int, ...], dims: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Two load-mask passes, that remove these units of layer 1."""
    found = {"heads_z": torch.ones(3, MODEL["num_heads"]), "dimff_z": torch.ones(3, MODEL["dim_ff"])}
    for (key, mask), removed in zip(found.items(), (heads, dims), strict=True):
        mask[1, list(removed)] = 0
        torch.save({key: mask}, directory / f"{key}.pt")
    return [{"pass": "load-mask", "path": f"{key}.pt"} for key in found]


def spoil(path: Path, *places: tuple[str, int, int]) -> None:
    state = torch.load(path, weights_only=True)
    for name, row, column in places:
        state[name][row, column] = NAN
    torch.save(state, path)


CUT = "all of it lies in what this plan cuts away"
KEPT = "no cut can remove it"


@pytest.mark.parametrize(
    ("places", "heads", "dims", "words"),
    [
        ([(QUERY, 2 * 8 + 3, 5)], (2,), (), CUT),
        ([(QUERY, 2 * 8 + 3, 5)], (3,), (), KEPT),
        ([(QUERY, 2 * 8 + 3, 5), (OUTPUT, 4, 7)], (1, 2), (6, 7), CUT),
        ([(QUERY, 2 * 8 + 3, 5), (OUTPUT, 4, 7)], (2,), (6,), KEPT),
        ([(QUERY, 0, 0), ("encoder.layers.1.self_att.self_attention.attention_out.weight", 0, 63)], range(8), (), CUT),
        ([("input_embedding.weight", 9, 9)], (2,), (), KEPT),
    ],
)
def test_what_a_plan_cuts_away_is_refused_too_and_said(
    places: list[tuple[str, int, int]], heads: tuple[int, ...], dims: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    spoil(save_weights(tmp_path / "weights.pt"), *places)
    found = told(tmp_path, *masks(tmp_path, heads, dims), EMIT)
    assert f"{places[0][0]} has 1 NaN, the first at {list(places[0][1:])}" in found
    assert words in found and (CUT in found) == (words == CUT)


def test_a_plan_that_trains_a_mask_cannot_know_what_it_cuts(tmp_path: Path) -> None:
    spoil(save_weights(tmp_path / "weights.pt"), (QUERY, 19, 5))
    score = {"pass": "score-mask", "criterion": "magnitude", "unit": "dim_ff", "target": {"dim_ff": 20}}
    assert CUT not in told(tmp_path, *masks(tmp_path, (2,)), score, EMIT)


def test_hugging_faces_names_are_cut_by_the_same_masks(tmp_path: Path) -> None:
    state = torch.load(save_weights(tmp_path / "ours.pt"), weights_only=True)
    tables = [state.pop(f"{name}_embedding.weight") for name in ("input", "prompt")]
    state["input_embedding.weight"] = torch.cat(tables)
    torch.save({f"cpmant.{name}": tensor for name, tensor in state.items()}, tmp_path / "weights.pt")
    spoil(tmp_path / "weights.pt", (f"cpmant.{QUERY}", 2 * 8 + 3, 5))
    config = {"model_type": "cpmant"} | {theirs: MODEL[ours] for ours, (theirs, _) in KEYS.items() if ours in MODEL}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert CUT in told(tmp_path, *masks(tmp_path, (2,)), EMIT, config="config.json")
    assert CUT not in told(tmp_path, *masks(tmp_path, (4,)), EMIT, config="config.json")


def test_teachers_and_masks_are_looked_at(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt")
    spoil(save_weights(tmp_path / "teacher.pt"), (QUERY, 1, 1))
    lesson = TRAIN | {"distillation": {"teacher": "teacher.pt", "logits": 0.5}}
    assert f"teacher.pt: error: {QUERY} has 1 NaN, the first at [1, 1]" in told(tmp_path, lesson)
    passes = masks(tmp_path, (2,))
    torch.save({"heads_z": with_one(NAN, 2, 7, shape=(3, 8))}, tmp_path / "heads_z.pt")
    assert "heads_z.pt: error: heads_z has 1 NaN, the first at [2, 7]" in told(tmp_path, *passes, EMIT)


def test_masks_of_numpy_arrays_are_refused_before_any_work(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt")
    passes = masks(tmp_path, (2,))
    torch.save({"heads_z": with_one(NAN, 2, 7, shape=(3, 8)).numpy()}, tmp_path / "heads_z.pt")
    content = plan(*passes, EMIT, model={"config": MODEL, "checkpoint": "weights.pt"})
    lowered = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))
    with pytest.raises(InputError, match=r"heads_z\.pt: error: heads_z holds 1 values other than 0 and 1"):
        sprunec.execute(lowered, tmp_path / "out")
    assert not (tmp_path / "out").exists()
