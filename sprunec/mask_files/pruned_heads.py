"""transformers' pruned_heads, in a config.json or alone: by layer, the heads that `prune_heads` has removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sprunec.errors import InputError
from sprunec.mask_files.forms import MaskForm, Rules, has_key
from sprunec.mask_files.layer_values import rows_of
from sprunec.masks.layer_masks import LayerMask

KEY = "pruned_heads"


def read(path: Path, content: Any, rules: Rules) -> list[LayerMask]:
    if rules.lists == "kept":
        message = f'{KEY} lists what is removed, and the plan says "lists": "kept"'
        raise InputError.at(path, message, "remove the option")
    rows = rows_of(path, KEY, content[KEY], rules._replace(threshold=None))
    return [LayerMask(path, KEY, "head", False, rows.layers)] if rows.layers else []


PRUNED_HEADS = MaskForm(
    "pruned_heads",
    'transformers\' "pruned_heads": {layer: [heads]}, which are removed',
    lambda content, _: has_key(content, (KEY,)),
    read,
)
