"""Masks from files of any known form, and what they leave of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sprunec.bmcook.masks.mask_forms import MaskTensor
from sprunec.bmcook.masks.matching import match
from sprunec.checkpoint.numpy_values import stand_ins
from sprunec.checkpoint.reader import read_state
from sprunec.checkpoint.safe_pickle import brief
from sprunec.checkpoint.torch_file import load_torch, not_read
from sprunec.errors import InputError, series
from sprunec.mask_files.folders import gathered
from sprunec.mask_files.forms import FORMS, MASK_FILE, NO_RULES, Rules
from sprunec.masks.given_values import as_tensor, in_words
from sprunec.masks.layer_masks import LayerMask, Masks, Matched, add, left_by, masks_of, with_even_groups
from sprunec.text_files import read_json
from sprunec.units import Kept

Mask = LayerMask | MaskTensor
LOG_ALPHAS = "z_loga"


def read_masks(paths: Sequence[Path], whole: Kept, entering: Kept | None = None, rules: Rules = NO_RULES) -> Matched:
    """Read the masks of all files together: what one of them removes is gone.

    Args:
        whole: the plan's input model, whose units masks count; BMCook's forms may also count those of the model at this
            pass, or of what the layer masks of the pass leave.
        entering: what the model still has at this pass; None: everything.

    Raises:
        InputError: a file is damaged, of no known form, or does not say what it means; or a mask does not fit.
    """
    files = [read_mask_file(path, rules) for path in paths]
    every = [mask for found in files for mask in found]
    _all_used(paths, every, rules)
    masks: Masks = {}
    for mask in every:
        if isinstance(mask, LayerMask):
            add(masks, masks_of(mask, _unit(mask, whole, rules), whole))
    entering = whole if entering is None else entering
    notes = match([[m for m in found if isinstance(m, MaskTensor)] for found in files], whole, entering, masks)
    notes += [
        f"{mask.path.name}: {mask.soft:,} values of {mask.key} keep a unit and are not 1; its weights stay as they are"
        for mask in every
        if mask.soft
    ]
    of_heads = (mask.path for mask in every if mask.unit in (None, "head", "kv_group"))
    kept = with_even_groups(left_by(masks, whole, entering), whole, next(of_heads, paths[0]))
    return Matched(masks, kept, tuple(notes))


def read_mask_file(path: Path, rules: Rules = NO_RULES) -> Sequence[Mask]:
    """Read all masks of a file, or of a folder with a file for each layer.

    Raises:
        InputError: it cannot be read, is of no form or of several, or does not say what it means.
    """
    content = as_tensor(gathered(path, open_masks, rules) if path.is_dir() else open_masks(path))
    fits = [form for form in FORMS.values() if form.recognises(content, rules)]
    if len(fits) > 1:
        known = series([form.known for form in fits], "and")
        raise InputError.at(path, f"is of {len(fits)} forms at once: {known}", "keep each in a file of its own")
    if not fits:
        keys = list(content) if isinstance(content, Mapping) else []
        what = f"it holds {brief(keys[0])}" if keys else f"it holds {in_words(content)}"
        raise InputError.at(path, f"is no mask file: {what}", known_forms(keys))
    if not (found := fits[0].read(path, content, rules)):
        raise InputError.at(path, "masks nothing", fits[0].known)
    return found


def known_forms(keys: Sequence[Any] = ()) -> str:
    """Say what a mask file may be, to whoever has given one with these keys."""
    if any(LOG_ALPHAS in str(key) for key in keys):
        return "these are the parameters that gates are made of: save the masks (zs) that their module gives"
    return f"a mask file has {'; or '.join(form.known for form in FORMS.values())}"


def open_masks(path: Path) -> Any:
    """Open a file; nothing in it is executed. Raises InputError."""
    if path.suffix == ".json":
        return read_json(path, MASK_FILE, known_forms(), once=True)
    if path.suffix == ".safetensors":
        return read_state(path)
    try:
        with torch.serialization.safe_globals(stand_ins()):
            return load_torch(path)
    except Exception as error:  # Damaged bytes may fail anywhere in the reader.
        raise not_read(path, MASK_FILE, error, known_forms(), known_forms()) from error


def _unit(mask: LayerMask, whole: Kept, rules: Rules) -> str:
    """Tell which unit a mask is of; a list without a name is of heads, where it is of nothing else."""
    unit = mask.unit or rules.lists_of
    if unit is None and any(0 < len(layer.get("kv_group", ())) < len(layer.get("head", ())) for layer in whole):
        message = f"does not say whether {mask.key} is of heads or of key-value groups"
        raise InputError.at(mask.path, message, 'say "lists_of": "head" or "kv_group"')
    return unit or "head"


def _all_used(paths: Sequence[Path], masks: Sequence[Mask], rules: Rules) -> None:
    """Raises InputError for an option that no file has a use for."""
    asked = {name for mask in masks if isinstance(mask, LayerMask) for name in mask.asked}
    for name in ("lists", "lists_of"):
        if getattr(rules, name) is not None and name not in asked:
            message = f'"{name}" is not used: no file of this pass has lists that leave it open'
            raise InputError.at(paths[0], message, "remove the option")
