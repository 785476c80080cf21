"""BMCook's, its plugin's and CPM-Live's own forms."""

from __future__ import annotations

from collections.abc import Mapping

from sprunec.bmcook.masks.mask_forms import KNOWN, is_bmcook, read_mask_tensors
from sprunec.mask_files.forms import MaskForm

# With an option about lists, a list is one of layers, and no mask_modules.
BMCOOK = MaskForm(
    "bmcook",
    KNOWN,
    lambda content, rules: is_bmcook(content) and (isinstance(content, Mapping) or not (rules.lists or rules.lists_of)),
    lambda path, content, rules: read_mask_tensors(path, content, rules.threshold),
)
