"""FLAP's masks: attn_mask over heads and mlp_mask over feed-forward dims, layer by layer, where 1 is kept.

An et al. 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language Models". Theirs are stacked, or lists
of one tensor a layer. The biases that FLAP adds for what it removes are in no mask; `compensate` refits weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sprunec.errors import InputError
from sprunec.mask_files.forms import MaskForm, Rules, has_key
from sprunec.mask_files.layer_values import rows_of
from sprunec.masks.layer_masks import LayerMask

UNITS_OF = {"attn_mask": "head", "mlp_mask": "dim_ff"}
KNOWN = "FLAP's attn_mask (heads) and mlp_mask (feed-forward dims), a row for every layer, where 1 keeps"


def read(path: Path, content: Any, rules: Rules) -> list[LayerMask]:
    if strange := [key for key in content if key not in UNITS_OF]:
        raise InputError.at(path, f"holds {strange[0]!r} beside {KNOWN}", "keep the masks in a file of their own")
    rows = {key: rows_of(path, key, value, rules, as_mask=True) for key, value in content.items()}
    return [LayerMask(path, key, UNITS_OF[key], True, each.layers, each.soft) for key, each in rows.items()]


FLAP = MaskForm("flap", KNOWN, lambda content, _: has_key(content, UNITS_OF), read)
