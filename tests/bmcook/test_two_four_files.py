"""2:4 masks in BMCook's form: what is written has it to the letter, what is read is checked before it is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.bmcook.masks.two_four_files import read_mask_file, write_pattern
from sprunec.errors import InputError
from sprunec.families.base_config import everything
from sprunec.families.model_directory import save_model
from sprunec.masks.two_four import Pattern, choose, load_pattern, save_pattern
from sprunec.plan.named_tensors import targeted
from tests.conftest import tiny_config, tiny_model

HOLES: dict[str, Any] = {"mask_modules": [[False, True], [True, False], [True, True]]}
WORDS = ["w_in.w_0", "attention_out", "input_embedding"]


def whole(**changes: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The shapes of all tensors and of the targets; the vocabulary has 97 rows, which only tiles mind."""
    shapes = tiny_config(**changes).tensors()
    return shapes, targeted(shapes, WORDS)


def directory_with(path: Path, dtype: torch.dtype = torch.float16, **changes: Any) -> tuple[Path, Pattern]:
    """A model directory with a pattern, as sparsify leaves it."""
    config = tiny_config(**changes)
    state = {name: tensor.to(dtype) for name, tensor in tiny_model(**changes).state_dict().items()}
    pattern = {name: choose("m4n2_1d", name, state[name]) for name in whole(**changes)[1]}
    save_model(path, config, everything(config), state)
    save_pattern(path, pattern)
    return path, pattern


def by_hand(pattern: Pattern, dtype: torch.dtype = torch.float16, **changes: Any) -> dict[str, Any]:
    """The same masks in BMCook's form, in the order of the model's own state dict."""
    content: dict[str, Any] = {}
    state = tiny_model(**changes).state_dict()
    for layer in range(3):
        start = f"encoder.layers.{layer}."
        pairs = [(n.removeprefix(start), n) for n in state if n.startswith(start)]
        masks = [(short, (pattern.get(n, torch.ones_like(state[n])) * 1.0).to(dtype)) for short, n in pairs]
        content[start.removesuffix(".")] = masks
    return content | {"input_embedding": pattern["input_embedding.weight"].to(dtype)}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return (
        type(left) is type(right)
        and len(left) == len(right)
        and all(same(a, b) if not isinstance(a, str) else a == b for a, b in zip(left, right, strict=True))
    )


@pytest.mark.parametrize("changes", [{}, HOLES])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_written_mask_has_bmcooks_keys_lists_and_types(tmp_path: Path, dtype: torch.dtype, changes: Any) -> None:
    directory, pattern = directory_with(tmp_path / "model", dtype, **changes)
    write_pattern(directory, tmp_path / "deep" / "mask.pt")
    content = torch.load(tmp_path / "deep" / "mask.pt", weights_only=True)
    assert same(content, by_hand(pattern, dtype, **changes))
    names, ones = zip(*content["encoder.layers.0"], strict=True)
    assert names[:2] == ("self_att.layernorm_before_attention.weight", "self_att.self_attention.project_q.weight")
    assert bool(ones[0].all()) and ones[0].shape == (24,)


def test_a_mask_made_by_hand_is_read(tmp_path: Path) -> None:
    pattern = directory_with(tmp_path / "model")[1]
    torch.save(by_hand(pattern), tmp_path / "hand.pt")
    shapes, targets = whole()
    found = read_mask_file(tmp_path / "hand.pt", "m4n2_1d", shapes, targets)
    assert list(found) == list(targets)
    assert all(mask.dtype == torch.bool and torch.equal(mask, pattern[name]) for name, mask in found.items())


def test_a_pattern_comes_back_from_its_directory(tmp_path: Path) -> None:
    directory, pattern = directory_with(tmp_path)
    assert all(torch.equal(mask, pattern[name]) for name, mask in load_pattern(directory).items())
    assert load_pattern(tmp_path / "elsewhere") == {}


def complaint(path: Path, content: Any, kind: str = "m4n2_1d", words: Any = WORDS) -> str:
    torch.save(content, path)
    shapes = whole()[0]
    with pytest.raises(InputError) as caught:
        read_mask_file(path, kind, shapes, targeted(shapes, words))
    (finding,) = caught.value.diagnostics
    assert finding.file == str(path) and finding.hint
    return finding.message


def test_a_mask_of_other_tensors_is_refused(tmp_path: Path) -> None:
    good, path = by_hand(directory_with(tmp_path / "model")[1]), tmp_path / "mask.pt"
    w_0 = "encoder.layers.0.ffn.ffn.w_in.w_0.weight"
    assert f"makes {w_0} sparse, which" in complaint(path, good, words=WORDS[1:])
    more = complaint(path, good, words=[*WORDS, "w_out"])
    assert "has no mask for encoder.layers.0.ffn.ffn.w_out.weight, which" in more
    del good["input_embedding"]
    assert "has no mask for input_embedding.weight" in complaint(path, good)
    assert "encoder.layers.7.x" in complaint(path, good | {"encoder.layers.7": [("x", torch.ones(4))]})


def test_a_mask_of_another_shape_is_refused_with_both(tmp_path: Path) -> None:
    good = by_hand(directory_with(tmp_path / "model")[1])
    good["encoder.layers.2"][6] = (good["encoder.layers.2"][6][0], torch.ones(36, 24))
    found = complaint(tmp_path / "mask.pt", good)
    assert "encoder.layers.2.ffn.ffn.w_in.w_0.weight is [36, 24], the weight here is [40, 24]" in found


def test_a_mask_without_the_pattern_is_refused_with_the_place(tmp_path: Path) -> None:
    good = by_hand(directory_with(tmp_path / "model")[1])
    mask = good["encoder.layers.1"][6][1]
    mask[11, 4:8] = torch.tensor([1, 1, 0, 1])
    found = complaint(tmp_path / "mask.pt", good)
    assert found.endswith("w_in.w_0.weight keeps 3 of 4 weights from row 11, column 4")
    mask[11, 4:8] = torch.tensor([1, 0.5, 1, 0])
    assert "values other than 0 and 1" in complaint(tmp_path / "mask.pt", good)


def test_a_1d_mask_is_no_2d_mask(tmp_path: Path) -> None:
    shapes, words = whole()[0], ["w_in"]
    state = tiny_model().state_dict()
    pattern = {name: choose("m4n2_1d", name, state[name]) for name in targeted(shapes, words)}
    pattern["input_embedding.weight"] = torch.ones(97, 24).bool()
    found = complaint(tmp_path / "mask.pt", by_hand(pattern), "m4n2_2d", words)
    assert "is no m4n2_2d mask: encoder.layers.0.ffn.ffn.w_in.w_0.weight keeps 3 of 4 weights in a column" in found


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(4)],
        {"encoder.layers.0": torch.ones(4).to_sparse()},
        {"encoder.layers.0": [("a", 1)]},
        {"encoder.layers.0": [("a",)]},
        {"encoder.layers.0": ["ab"]},
        {"input_embedding": 5},
        {"input_embedding": torch.ones(97, 24, device="meta")},
    ],
    ids=repr,
)
def test_what_is_no_mask_file_is_refused(tmp_path: Path, content: Any) -> None:
    assert "is no 2:4 mask file" in complaint(tmp_path / "mask.pt", content)


def test_a_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    message = complaint(tmp_path / "mask.pt", {"input_embedding": Bomb(tmp_path / "exploded")})
    assert "cannot be read as a 2:4 mask file" in message
    assert not (tmp_path / "exploded").exists()


def test_damaged_bytes_are_an_input_error(tmp_path: Path) -> None:
    path, shapes = tmp_path / "mask.pt", whole()[0]
    torch.save(by_hand(directory_with(tmp_path / "model")[1]), path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="cannot be read"):
        read_mask_file(path, "m4n2_1d", shapes, targeted(shapes, WORDS))


def test_a_mask_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    directory, _ = directory_with(tmp_path / "model")
    path = tmp_path / "mask.pt"
    write_pattern(directory, path)
    os.utime(path, ns=(1, 1))
    write_pattern(directory, path)
    assert path.stat().st_mtime_ns == 1
    path.write_bytes(b"other")
    write_pattern(directory, path)
    assert path.stat().st_mtime_ns != 1 and path.stat().st_size > 1000
