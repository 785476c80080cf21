"""What can be known of a 2:4 pass before anything runs: names, and widths as earlier passes leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.compiler.lower import lower
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.named_tensors import targeted, uneven
from sprunec.plan.plan import check_plan, read_plan
from tests.helpers.small_plans import MODEL, TINY, plan, write

TRAIN = {"pass": "train", "steps": 4}


def cut(unit: Any, budget: str = "global", **target: Any) -> dict[str, Any]:
    return {"pass": "score-mask", "criterion": "random", "unit": unit, "target": target, "budget": budget}


def findings(path: Path, *before: dict[str, Any], pattern: str = "m4n2_1d", **changes: Any) -> list[tuple[str, str]]:
    """Codes with the first tensor they name, for a plan that cuts and then sparsifies."""
    tensors = {"tensors": changes.pop("tensors")} if "tensors" in changes else {}
    content = plan(
        TRAIN, *before, {"pass": "sparsify", "pattern": pattern} | tensors, model={"config": MODEL | changes}
    )
    found = check_plan(write(path, content))[1]
    return [(f"{f.severity} {f.code}", next(w for w in f.message.split() if "." in w)) for f in found]


def name(inside: str, layer: int = 0) -> str:
    return f"encoder.layers.{layer}.{inside}.weight"


ATT_OUT, W_OUT = name("self_att.self_attention.attention_out"), name("ffn.ffn.w_out")


@pytest.mark.parametrize(
    "passes",
    [
        [cut("head", num_heads=3)],
        [cut("head", sparsity=0.5), cut("dim_ff", "per-layer", dim_ff=20)],
        [cut("dim_ff", "per-layer", dim_ff=30), cut("dim_ff", "per-layer", dim_ff=20)],
        [cut("head", "per-layer", num_heads=4), cut("dim_head", dim_head=3)],
        [cut("layer", num_attention=2, num_feed_forward=1)],
    ],
    ids=repr,
)
def test_widths_that_are_sure_to_part_into_fours_are_not_told(tmp_path: Path, passes: list[dict[str, Any]]) -> None:
    """Whatever number of heads a global budget chooses, heads of 8 make multiples of four."""
    assert findings(tmp_path, *passes) == []


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([cut("dim_ff", dim_ff=20)], ("warning unknown-width", W_OUT)),
        ([cut("dim_ff", dim_ff=40), cut("dim_ff", "per-layer", dim_ff=20)], ("warning unknown-width", W_OUT)),
        ([cut(["head", "dim_head"], sparsity=0.5)], ("warning unknown-width", ATT_OUT)),
        ([cut("dim_head", "per-layer", dim_head=3)], None),
        ([cut("head", num_heads=3), cut("dim_head", "per-layer", dim_head=3)], ("warning unknown-width", ATT_OUT)),
        ([cut("head", sparsity=0.5), cut("dim_ff", "per-layer", dim_ff=30)], ("error uneven-width", W_OUT)),
        ([cut(["head", "dim_head"], "per-layer", num_heads=3, dim_head=3)], ("error uneven-width", ATT_OUT)),
    ],
    ids=repr,
)
def test_widths_follow_from_what_earlier_passes_leave(
    tmp_path: Path, passes: list[dict[str, Any]], expected: tuple[str, str] | None
) -> None:
    assert findings(tmp_path, *passes) == ([expected] if expected else [])


FOUR = {"dim_ff": 4}


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([cut("dim_ff", sparsity=0.5) | {"multiple_of": FOUR}], None),
        ([cut("dim_ff", sparsity=0.5) | {"multiple_of": {"dim_ff": 2}}], ("warning unknown-width", W_OUT)),
        ([cut(["head", "dim_head"], sparsity=0.5) | {"multiple_of": {"num_heads": 2, "dim_head": 2}}], None),
        ([cut("dim_ff", sparsity=0.5) | {"multiple_of": FOUR}, cut("dim_ff", "per-layer", dim_ff=20)], None),
        (
            [cut("dim_ff", sparsity=0.5) | {"multiple_of": FOUR}, cut("dim_ff", "per-layer", dim_ff=22)],
            ("warning unknown-width", W_OUT),
        ),
        ([cut("dim_ff", sparsity=0.3), cut("dim_ff", "per-layer", dim_ff=12) | {"multiple_of": FOUR}], None),
    ],
    ids=repr,
)
def test_multiples_make_widths_known_that_a_pass_chooses(
    tmp_path: Path, passes: list[dict[str, Any]], expected: tuple[str, str] | None
) -> None:
    assert findings(tmp_path, *passes) == ([expected] if expected else [])


def test_a_mask_file_may_leave_any_width(tmp_path: Path) -> None:
    torch.save({"heads_z": torch.ones(3, 8)}, tmp_path / "mask.pt")
    found = findings(tmp_path, {"pass": "load-mask", "path": "mask.pt"})
    assert found == [("warning unknown-width", ATT_OUT)]


def test_an_uneven_layer_that_may_go_is_a_warning(tmp_path: Path) -> None:
    layers = [{"heads": 8, "dim_head": 8, "dim_ff": width} for width in (48, 46, 48)]
    goes = cut("feed_forward", num_feed_forward=2)
    assert findings(tmp_path, layers=layers) == [("error uneven-width", name("ffn.ffn.w_out", 1))]
    assert findings(tmp_path, goes, layers=layers) == [("warning uneven-width", name("ffn.ffn.w_out", 1))]
    everywhere = [layer | {"dim_ff": 46} for layer in layers]
    assert findings(tmp_path, goes, layers=everywhere) == [("error uneven-width", W_OUT)]


def test_tiles_need_even_rows_too(tmp_path: Path) -> None:
    odd = {"vocab_size": 99, "tensors": ["input_embedding"]}
    assert findings(tmp_path, **odd) == []
    assert findings(tmp_path, pattern="m4n2_2d", **odd) == [("error uneven-width", "input_embedding.weight")]
    assert uneven("m4n2_1d", (350, 64)) is None
    assert (uneven("m4n2_2d", (350, 64)), uneven("m4n2_1d", (64, 3735))) == (350, 3735)


def test_an_odd_model_width_is_told_whatever_is_cut(tmp_path: Path) -> None:
    found = findings(tmp_path, cut("dim_ff", dim_ff=20), dim_model=30)
    q, w_out = name("self_att.self_attention.project_q"), ("warning unknown-width", W_OUT)
    assert sorted(found) == [("error uneven-width", q), w_out]


def test_a_word_names_every_matrix_that_contains_it() -> None:
    shapes = ModelConfig.from_dict(TINY).tensors()
    assert list(targeted(shapes, ["layers.1.ffn", "input_emb"])) == [
        "input_embedding.weight",
        *(f"encoder.layers.1.ffn.ffn.{part}.weight" for part in ("w_in.w_0", "w_in.w_1", "w_out")),
    ]
    assert targeted(shapes, ["layernorm", "w_in.w.weight"]) == {}


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("w_inn", 'did you mean "w_in"?'),
        ("attn_out", 'did you mean "attention_out"?'),
        ("encoder.layers.3.ffn.ffn.w_out", 'did you mean "encoder.layers.0.ffn.ffn.w_out"'),
        ("input_embeddings.weight", 'did you mean "input_embedding.weight"?'),
    ],
)
def test_a_word_that_names_nothing_is_put_right(tmp_path: Path, word: str, hint: str) -> None:
    content = plan(TRAIN, {"pass": "sparsify", "pattern": "m4n2_1d", "tensors": [word]})
    (finding,) = check_plan(write(tmp_path, content))[1]
    assert (finding.severity, finding.pointer) == ("error", "/passes/1/tensors/0")
    assert finding.hint.startswith(hint)


def test_a_given_mask_may_come_before_the_training(tmp_path: Path) -> None:
    torch.save({"heads_z": torch.ones(3, 8)}, tmp_path / "mask.pt")
    content = plan({"pass": "sparsify", "pattern": "m4n2_1d", "path": "mask.pt"}, TRAIN)
    assert check_plan(write(tmp_path, content))[1] == ()


def digest(folder: Path, **options: Any) -> str | None:
    path = write(folder, plan(TRAIN, {"pass": "sparsify", "pattern": "m4n2_1d", **options}))
    node = next(node for node in lower(read_plan(path)).nodes if node.pass_ == "sparsify")
    assert dict(node.writes) == ({"mask": folder / "out.pt"} if "save_mask" in options else {})
    return node.digest


def test_a_digest_is_of_the_masks_content_and_not_of_where_it_goes(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "one.pt")
    (tmp_path / "same.pt").write_bytes((tmp_path / "one.pt").read_bytes())
    torch.save({"a": torch.zeros(4)}, tmp_path / "other.pt")
    assert digest(tmp_path) == digest(tmp_path, save_mask="out.pt")
    one, same, other = (digest(tmp_path, path=f"{which}.pt") for which in ("one", "same", "other"))
    assert one == same
    assert len({digest(tmp_path), one, other, digest(tmp_path, tensors=["w_in"])}) == 4
    assert digest(tmp_path, path="gone.pt") is None


def test_the_guides_widths_are_refused(tmp_path: Path) -> None:
    """350 feed-forward dims, what the guide cuts to, make no groups of four."""
    root = Path(__file__).parents[2]
    content = json.loads((root / "plans/cpm-ant-1b-to-300m.json").read_text())
    content["model"]["config"] = str(root / "plans" / content["model"]["config"])
    content["passes"] = [p | ({"budget": "per-layer"} if "unit" in p else {}) for p in content["passes"]]
    content["passes"].insert(-1, {"pass": "sparsify", "pattern": "m4n2_1d"})
    found = [f for f in check_plan(write(tmp_path, content))[1] if f.severity == "error"]
    assert [f.code for f in found] == ["uneven-width"]
    assert "w_out.weight is [4096, 350] here, and 350 is not a multiple of 4 (and 20 more)" in found[0].message
