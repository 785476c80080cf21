"""What mask files of others hold, polarity among it; and files that are hostile, damaged or something else."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sprunec.checkpoint.numpy_values import stand_ins
from sprunec.errors import InputError
from sprunec.families.base_config import everything
from sprunec.mask_files.reading import read_masks
from sprunec.masks.layer_masks import Matched
from sprunec.units import Kept
from tests.conftest import kept_layer, tiny_config

WHOLE = everything(tiny_config(mask_modules=[[False, True], [True, False], [False, False]]))
REMOVED = [[True, True], [True, False], [False, True]]
ATTENTION = {unit: WHOLE[2][unit] for unit in ("head", "dim_head")}
LEFT = Kept(({}, WHOLE[1], ATTENTION))


def saved(path: Path, content: Any) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        torch.save(content, path)
    return path


def read(path: Path, content: Any) -> Matched:
    return read_masks([saved(path, content)], WHOLE)


def complaint(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_masks([path], WHOLE)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.file == str(path)
    return diagnostic.message


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bool, torch.int64])
def test_any_dtype_and_trailing_ones_in_the_shape_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]], dtype=dtype)[:, :, None]
    assert read(tmp_path / "heads.pt", {"heads_z": rows}).kept[2]["head"] == (1,)


def test_bmcooks_feed_forward_pass_leaves_a_parameter_and_a_tensor_in_one_file(tmp_path: Path) -> None:
    heads = nn.Parameter(torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]]), requires_grad=False)
    dims = torch.zeros(2, 40)
    dims[0, 3], dims[1, 39] = 1, 1
    kept = read(tmp_path / "both.pt", {"heads_z": heads, "dimff_z": dims}).kept
    assert [layer.get("head") for layer in kept] == [(0, 3), None, (1,)]
    assert [layer.get("dim_ff") for layer in kept] == [None, (3,), (39,)]


def test_bmcooks_layer_file_keeps_where_it_has_1(tmp_path: Path) -> None:
    content = {"self_att_layer_z": torch.tensor([0.0, 1]), "cross_att_layer_z": torch.zeros(0)}
    found = read(tmp_path / "l.pt", content | {"ffn_layer_z": torch.tensor([1.0, 0])})
    assert {key: mask.tolist() for key, mask in found.masks.items()} == {
        (0, "attention"): [False],
        (2, "attention"): [True],
        (1, "feed_forward"): [True],
        (2, "feed_forward"): [False],
    }
    assert found.kept == LEFT


def test_the_plugins_file_keeps_where_it_has_1(tmp_path: Path) -> None:
    rows = {"att": [[0], [1]], "ffn": [[1], [0]], "num_heads": [[1, 1, 1, 1], [0, 1, 1, 0]]}
    content = OrderedDict((key, torch.tensor(value, dtype=torch.float16)) for key, value in rows.items())
    kept = read(tmp_path / "plugin.pt", content).kept
    assert kept == (LEFT[0], LEFT[1], kept_layer((1, 2), WHOLE[2]["dim_head"], None))


def test_the_plugins_file_may_have_a_row_for_every_layer(tmp_path: Path) -> None:
    """Whatever stands where a layer has no such sublayer."""
    heads = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]]).half()
    kept = read(
        tmp_path / "plugin.pt", OrderedDict(num_heads=heads, transformer=torch.tensor([[1], [0], [1]]).half())
    ).kept
    assert [layer.get("head") for layer in kept] == [(0,), None, (1, 2)]
    assert ["dim_ff" not in layer for layer in kept] == [True, True, False]


@pytest.mark.parametrize(
    "content",
    [
        REMOVED,
        [tuple(pair) for pair in REMOVED],
        tuple(REMOVED),
        [[int(value) for value in pair] for pair in REMOVED],
        [[np.bool_(value) for value in pair] for pair in REMOVED],
        [[np.int64(value) for value in pair] for pair in REMOVED],
        [np.array(pair) for pair in REMOVED],
        np.array(REMOVED),
        np.asfortranarray(np.array(REMOVED)),
        torch.tensor(REMOVED),
        [torch.tensor(pair) for pair in REMOVED],
        [[torch.tensor(value) for value in pair] for pair in REMOVED],
        {"mask_modules": REMOVED},
    ],
    ids=lambda content: type(content).__name__,
)
def test_mask_modules_remove_where_they_are_true_however_they_are_stored(content: Any, tmp_path: Path) -> None:
    """BMCook's cut asked for `is True`, and NumPy's and torch's booleans removed nothing."""
    assert read(tmp_path / "mask.pt", content).kept == LEFT


@pytest.mark.parametrize("content", [REMOVED, {"num_layers": 3, "mask_modules": REMOVED}])
def test_mask_modules_from_json_and_from_a_model_config(content: Any, tmp_path: Path) -> None:
    assert read(tmp_path / "mask.json", content).kept == LEFT


def test_bmcooks_keys_with_numpys_arrays_are_read(tmp_path: Path) -> None:
    heads = np.array([[1.0, 0, 0, 1], [0, 1, 0, 0]], dtype=np.float32)
    assert read(tmp_path / "heads.pt", {"heads_z": heads}).kept[0]["head"] == (0, 3)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content", [{"heads_z": Bomb()}, [[Bomb(), True]] * 3, Bomb()])
def test_a_pickled_object_is_refused_and_not_run(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "bomb.pt", content)
    assert "cannot be read as a mask file" in complaint(path)
    path.write_bytes(pickle.dumps(content, protocol=2))
    assert "cannot be read as a mask file" in complaint(path)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("array", [np.array([[Bomb(), True]]), np.array([("a", 1)], dtype="U1,i4"), np.array(["x"])])
def test_numpys_values_other_than_numbers_are_refused(
    array: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cannot be read as a mask file" in complaint(saved(tmp_path / "mask.pt", {"heads_z": array}))
    assert not Path("exploded").exists()


def test_numpys_own_functions_stay_refused(tmp_path: Path) -> None:
    """A dtype's layout from a file can make raw bytes into addresses; our readers of numbers stand in."""
    path, before = saved(tmp_path / "mask.pt", np.array(REMOVED)), set(torch.serialization.get_safe_globals())
    assert read_masks([path], WHOLE).kept == LEFT
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert not {np.dtype, np.ndarray} & {given for given, _ in stand_ins()}


UNFILLED = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00btR"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"}X\x07\x00\x00\x00heads_z" + UNFILLED + b"s", "heads_z is a Array, not a tensor of 0 and 1"),
        (b"}X\x0b\x00\x00\x00ffn_layer_z" + UNFILLED + b"s", "ffn_layer_z is a Array, not a tensor of 0 and 1"),
        (UNFILLED, "is no mask file: it holds a Array"),
        (b"](" + UNFILLED * 3 + b"e", "mask_modules holds a Array for layer 0"),
    ],
)
def test_an_array_that_is_never_filled_is_refused(pickled: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.pt"
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, b"\x80\x02" + pickled + b"." if name.endswith("data.pkl") else content)
    assert message in complaint(path)


def stretched(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One number that a file says is a tensor of any size."""
    return torch.ones(1, dtype=dtype).as_strided(shape, (0,) * len(shape))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"heads_z": torch.full((2, 4), 0.5)}, "values other than 0 and 1, the first"),
        ({"heads_z": torch.full((2, 4), float("nan"))}, "values other than 0 and 1, the first"),
        ({"heads_z": stretched((2, 2**45))}, f"a tensor of {2**46:,} entries, and the file has fewer"),
        ({"heads_z": stretched((2**45, 4))}, f"a tensor of {2**47:,} entries, and the file has fewer"),
        ({"ffn_layer_z": stretched((2**45,))}, f"a tensor of {2**45:,} entries, and the file has fewer"),
        (stretched((2**45, 2), torch.bool), f"a tensor of {2**46:,} entries, and the file has fewer"),
        ({}, "is no mask file: it holds a dict of length 0"),
        (None, "is no mask file: it holds null"),
        ({"cross_att_layer_z": torch.ones(3)}, "cross_att_layer_z has 3 rows, and the model has no cross-attention"),
        ({"cross_att_layer_z": torch.ones(0)}, "masks nothing"),
        ({"heads": torch.ones(2, 4)}, "holds 'heads'"),
        ({"dim_model": torch.ones(3, 24), "att": torch.ones(2, 1)}, "holds 'dim_model'"),
        ({"heads_z": torch.ones(2, 4), "att": torch.ones(2, 1)}, "holds 'heads_z'"),
        ({"encoder.layers.0": [("w", torch.ones(2))]}, "holds 'encoder.layers.0'"),
        ({"heads_z": [[1] * 4] * 2}, "heads_z is [a list of length 4, a list of length 4], not a tensor of 0 and 1"),
        ({"heads_z": torch.tensor(1.0)}, "heads_z is a single number, not one for every sublayer"),
        ({"att": torch.tensor(True)}, "att is a single number, not one for every sublayer"),
        ({"heads_z": torch.ones(2, 4).to_sparse()}, "heads_z is a float32 tensor, not a tensor of 0 and 1"),
        ({"heads_z": torch.ones(2, 4, device="meta")}, "heads_z is a float32 tensor, not a tensor of 0 and 1"),
        (torch.ones(2, 4), "is no mask file: it holds a float32 tensor"),
        ({"mask_modules": None}, "is no mask file: it holds null"),
        ([[True, False]] * 2, "mask_modules: the file has 2 and 2 rows"),
        ([[True, False, True]] * 3, "mask_modules holds [true, false, true] for layer 0"),
        ([[True, False], [True, 2], [True, True]], "mask_modules holds [true, 2] for layer 1"),
        ([[1.0, 0.0]] * 3, "mask_modules holds [1.0, 0.0] for layer 0"),
        ([1, 0, 1], "mask_modules holds 1 for layer 0"),
        ([], "mask_modules: the file has 0 and 0 rows"),
    ],
)
def test_masks_that_are_none_say_what_they_are(tmp_path: Path, content: Any, message: str) -> None:
    assert message in complaint(saved(tmp_path / "mask.pt", content))


@pytest.mark.parametrize("text", ["", "[", "[[true,", "\xff", "[" * 100_000, '{"heads_z": [[1]]}', "3"])
def test_json_that_is_no_mask_is_one_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.json"
    path.write_bytes(text.encode("latin-1"))
    assert complaint(path)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    assert "No such file" in complaint(tmp_path / "none.pt")
    assert complaint(tmp_path) == "the folder has no mask files"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "numpy"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, form: str) -> None:
    buffer, rng, refused = io.BytesIO(), random.Random(0), 0
    content: Any = {"heads_z": torch.ones(2, 4)} if form != "numpy" else [np.array(pair) for pair in REMOVED]
    torch.save(content, buffer, _use_new_zipfile_serialization=form in ("zip", "numpy"))
    whole = buffer.getvalue() if form != "pickle" else pickle.dumps({"heads_z": [1.0]})
    for _ in range(100):
        damaged = bytearray(whole[: rng.randrange(1, len(whole) + 1)])
        for _ in range(4):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "x.pt").write_bytes(bytes(damaged))
        try:
            read_masks([tmp_path / "x.pt"], WHOLE)
        except InputError:
            refused += 1
    assert refused > 80
