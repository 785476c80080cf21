"""Whatever a file holds, it is read as a part of the model or refused with a remedy; nothing else comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sprunec.errors import InputError
from sprunec.mask_files.forms import Rules
from sprunec.mask_files.reading import read_masks
from tests.mask_files.test_forms import GROUPED, WHOLE

NAMES = ["kept", "removed", "heads", "kv_group", "dim_ff", "pruned_heads", "attn_mask", "head_z", "mlp_z", "hidden_z"]
KEYS = st.sampled_from([*NAMES, "heads_z", "mask_modules", "dim_model", "0", "1", "2", "x", "-1"])
SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 6, 8]), max_size=4)
DTYPES = [torch.float32, torch.bool, torch.int64, torch.uint8, torch.bfloat16, torch.complex64]
TENSORS = st.builds(
    lambda shape, dtype, most, seed: torch.randint(
        0, most, shape, generator=torch.Generator().manual_seed(seed)
    ).to(dtype),
    SIZES, st.sampled_from(DTYPES), st.sampled_from([1, 2, 7]), st.integers(0, 9),
)  # fmt: skip
NUMBERS = st.sampled_from([0, 1, 2, 5, -1, 6, 10**40, 0.5, float("nan"), True, False, None, "1"])
INDICES = st.lists(st.sampled_from([0, 1, 2, 3, 5]), unique=True, max_size=5)
ROWS = st.dictionaries(st.sampled_from(["0", "1", "2"]), INDICES, max_size=3) | st.lists(INDICES, max_size=4)
RULES = st.builds(
    Rules,
    st.sampled_from([None, 0, 0.5]),
    st.sampled_from([None, "kept", "removed"]),
    st.sampled_from([None, "head", "kv_group", "dim_ff"]),
)


def holding(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values that are nested anyhow, and some that are nearly right."""
    nested = st.recursive(
        leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=8
    )
    named = st.dictionaries(st.sampled_from(NAMES), ROWS, min_size=1, max_size=2)
    return nested | ROWS | named | st.dictionaries(st.sampled_from(["kept", "removed"]), named, max_size=2)


@pytest.mark.parametrize("name", ["m.json", "m.pt"])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), rules=RULES, whole=st.sampled_from([WHOLE, GROUPED]))
def test_anything_is_read_or_refused(name: str, data: st.DataObject, rules: Rules, whole: Any, tmp_path: Path) -> None:
    content = data.draw(holding(NUMBERS if name == "m.json" else NUMBERS | TENSORS))
    path = tmp_path / name
    if name == "m.json":
        path.write_text(json.dumps(content))
    else:
        torch.save(content, path)
    kept, told = whole, ()
    try:
        kept = read_masks([path], whole, rules=rules).kept
    except InputError as error:
        told = error.diagnostics
    assert all(each.hint for each in told)
    for layer, before in zip(kept, whole, strict=True):
        assert all(set(units) <= set(before[unit]) and units for unit, units in layer.items())
        if "kv_group" in layer:
            groups = [head // 2 for head in layer["head"]]
            assert sorted(set(groups)) == list(layer["kv_group"])
            assert len({groups.count(group) for group in groups}) == 1
