"""CoFi's and LLM-Shearing's masks (zs.pt): a row for every layer of the model, where 0 is removed.

Xia et al. 2022, "Structured Pruning Learns Compact and Accurate Models"; Xia et al. 2023, "Sheared LLaMA". Their shapes
have singleton dims, such as (layers, 1, heads, 1, 1). Both keep what is above 0, as `"threshold": 0` does; they also
multiply weights by the values between 0 and 1, which is no matter of what is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sprunec.errors import InputError
from sprunec.mask_files.forms import MaskForm, Rules, has_key
from sprunec.mask_files.layer_values import rows_of
from sprunec.masks.given_values import as_tensor, binary, in_words, is_readable
from sprunec.masks.layer_masks import LayerMask

UNITS_OF = {
    "head_z": "head",
    "intermediate_z": "dim_ff",
    "head_layer_z": "attention",
    "mlp_z": "feed_forward",
    "layer_z": "block",
}
NEVER_CUT = {
    "hidden_z": "the model's width is shared by all layers and cannot be cut",
    "qk_head_dim_z": "each head would keep query dims of its own, and dim_head is cut alike in all heads of a layer",
    "vo_head_dim_z": "each head would keep value dims of its own, and dim_head is cut alike in all heads of a layer",
}
KNOWN = f"CoFi's and LLM-Shearing's {', '.join(UNITS_OF)}, a row for every layer, where 1 keeps"


def read(path: Path, content: Any, rules: Rules) -> list[LayerMask]:
    found = []
    for key, value in content.items():
        if key in NEVER_CUT:
            _refuse_cut(path, key, as_tensor(value), rules)
        elif key not in UNITS_OF:
            raise InputError.at(path, f"holds {key!r} beside {KNOWN}", f"they may have {', '.join(NEVER_CUT)}, too")
        else:
            rows = rows_of(path, key, value, rules, as_mask=True)
            found.append(LayerMask(path, key, UNITS_OF[key], True, rows.layers, rows.soft))
    return found


def _refuse_cut(path: Path, key: str, value: Any, rules: Rules) -> None:
    """Raises InputError unless all of it is kept."""
    if not is_readable(value):
        raise InputError.at(path, f"{key} is {in_words(value)}, not a tensor", KNOWN)
    kept = binary(path, key, value.detach().reshape(1, -1), rules.threshold).ones
    if removed := int((~kept).sum()):
        message = f"{key} removes {removed:,} of {kept.numel():,} dims: {NEVER_CUT[key]}"
        raise InputError.at(path, message, f"learn masks without it, where all of {key} is 1")


ZS = MaskForm("zs", KNOWN, lambda content, _: has_key(content, UNITS_OF) or has_key(content, NEVER_CUT), read)
