"""What identifies the weights that a plan names, refused where a number in them is not finite.

A NaN cannot be cut away: the masked model multiplies it by 0, which is NaN again, so nothing could be compared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sprunec.checkpoint.dtypes import FIX_NUMBERS
from sprunec.checkpoint.header import read_places
from sprunec.checkpoint.layouts import checkpoint_files
from sprunec.checkpoint.safetensors_file import Stored
from sprunec.errors import Diagnostic, InputError
from sprunec.families.cards import card_of
from sprunec.file_digests import MISSING, file_digest, known_digest, remember_digest
from sprunec.plan.plan import Plan

if TYPE_CHECKING:
    from sprunec.checkpoint.finite import NonFinite

MOST_TOLD = 5
DRY_READ = 4 * 2**30  # bytes that a dry run reads: a few seconds
NO_CUT = "no cut can remove it, since 0 times NaN is NaN"
NO_MASK = "a mask holds 0 and 1"
NO_TEACHER = "a student would learn NaN from it"
CUT_AWAY = f"all of it lies in what this plan cuts away, and is refused all the same: {NO_CUT}"

_FINITE = set[str]()  # the sha256 of files that have been checked; the store's own hashing checks nothing


def weights_digest(path: Path, about: str = NO_CUT, plan: Plan | None = None, most_read: float = math.inf) -> str:
    """Hash all files of a checkpoint; `MISSING` if one is not there, or if they have more bytes than may be read.

    Args:
        about: what else to say of numbers that are not finite.
        plan: of which this is the model: where its masks come from files, it is known what they cut away.

    Raises:
        InputError: it holds NaN or infinity; says where.
    """
    files = checkpoint_files(path)
    if not all(file.is_file() for file in files):
        return file_digest(path)
    if sum(file.stat().st_size for file in files) > most_read:
        return MISSING
    try:
        places: dict[str, Stored] = read_places(path, lambda file: {})
    except (InputError, OSError):  # who loads it tells what is wrong with it
        places = {}
    digests: dict[Path, str] = {}
    found: list[NonFinite] = []
    for file in files:
        digests[file], more = _read(file, {name: place for name, place in places.items() if place.file == file})
        found += more
    if found:
        hint = f"{FIX_NUMBERS}; {CUT_AWAY if plan is not None and _is_cut_away(plan, found) else about}"
        told = [Diagnostic("not-finite", str(each), hint, file=str(each.file)) for each in found[:MOST_TOLD]]
        if len(found) > MOST_TOLD:
            message = f"{told[-1].message}; {len(found) - MOST_TOLD} more tensors have some"
            told[-1] = replace(told[-1], message=message)
        raise InputError(*told)
    joined = "\n".join(f"{file.name} {digest}" for file, digest in digests.items())
    return hashlib.sha256(joined.encode()).hexdigest() if path.is_dir() else digests[files[0]]


def _read(file: Path, places: dict[str, Stored]) -> tuple[str, list[NonFinite]]:
    known = known_digest(file)
    if known is not None and known in _FINITE:
        return known, []
    from sprunec.checkpoint.finite import read_weights  # needs numpy, which inspecting a config does not

    digest, found = read_weights(file, places)
    if not found:
        remember_digest(file, digest)
        _FINITE.add(digest)
    return digest, found


def _is_cut_away(plan: Plan, found: Sequence[NonFinite]) -> bool:
    """Tell whether none of these numbers is in what is left once every mask of the plan has been applied."""
    masks = [spec for spec in plan.passes if spec.name == "load-mask"]
    others = any(not spec.options.keys().isdisjoint(("unit", "grid", "steps")) for spec in plan.passes)
    if not masks or others or any(each.count > len(each.places) for each in found):
        return False
    from sprunec.families.base_config import everything
    from sprunec.mask_files.forms import Rules
    from sprunec.mask_files.reading import read_masks
    from sprunec.models.meta_models import traced_shape
    from sprunec.rewrite.recipe import make_recipe

    config = plan.model.config
    whole = kept = everything(config)
    try:
        for spec in masks:
            rules = Rules(*(spec.options.get(name) for name in Rules._fields))
            kept = read_masks(spec.options["path"], whole, kept, rules).kept
    except InputError:
        return False
    recipe = make_recipe(traced_shape(config), kept.inside(whole))
    parts = card_of(config).parts(config, [each.tensor for each in found])
    own_names = {part.name: name for name, part in parts.items()}

    def is_out(each: NonFinite) -> bool:
        name = own_names.get(each.tensor, "")
        left = {dim: set(indices) for dim, indices in recipe.slices.get(name, {}).items()}
        places = (any(int(place[dim]) not in left[dim] for dim in left) for place in each.places)
        return name in recipe.removed or all(places)

    return all(map(is_out, found))
