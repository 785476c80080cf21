"""What the data pass does with a CPM-Live set: see which records are of use, and keep only where they lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sprunec.bmcook.data.records import Index, Limits, Status, make_index
from sprunec.bmcook.data.sets import read_set
from sprunec.bmcook.data.stream import ABOUT, PROMPT_TABLE
from sprunec.data.saved import save_array
from sprunec.durable import write_new
from sprunec.errors import InputError

if TYPE_CHECKING:
    from sprunec.passes.job import Job


def read_sets(job: Job[Any], held_out: float | Path) -> dict[str, Any]:
    """Index the training part and the held-out part; the metrics of the pass."""
    options, index = job.options, _index(job, "paths")
    if isinstance(held_out, Path):
        parts = {"train": (index, "paths"), "held_out": (_index(job, "held_out"), "held_out")}
    else:
        # the last share of the records in use is held out, one of them at least
        used = np.flatnonzero(index["status"] == Status.USED)
        kept = len(used) - max(1, round(len(used) * held_out))
        cut = int(used[kept]) if kept >= 1 else len(index)
        parts = {"train": (index[:cut], "paths"), "held_out": (index[cut:], "paths")}
    tokens = {name: _checked_tokens(job, name, *part) for name, part in parts.items()}
    for name, (part, _) in parts.items():
        save_array(job.out / f"{name}.npy", part)
    about = {"roles": {name: role for name, (_, role) in parts.items()}, "order": options.order}
    write_new(job.out / ABOUT, json.dumps(about | {"packed_prompts": options.packed_prompts}))
    status = np.concatenate([part["status"] for part, _ in parts.values()])
    counts = {each.name.lower(): int((status == each).sum()) for each in Status}
    return {
        "records": len(status),
        "dropped": len(status) - counts.pop("used"),
        "training_tokens": tokens["train"],
        "held_out_tokens": tokens["held_out"],
        **counts,
    }


def _index(job: Job[Any], role: str) -> Index:
    options, model = job.options, job.options.of_model
    limits = Limits(options.room, options.vocab_size, model["prompt_types"], model["segment_types"])
    return make_index(read_set(job.files[role][0].parent, options.block_size), limits)


def _checked_tokens(job: Job[Any], name: str, index: Index, role: str) -> int:
    """Count the tokens in use of a part. Raises InputError: there are none, or its prompts' ids lie above them."""
    options, folder, used = job.options, job.files[role][0].parent, index[index["status"] == Status.USED]
    if not len(used):
        message = f"none of the {len(index)} records of the {name} part can be used"
        raise InputError.at(folder, message, "give a larger set, or a larger data.max_length")
    ids = (int(used["task"].max()) + 1) * options.of_model["prompt_length"]
    if options.packed_prompts != PROMPT_TABLE and ids > options.vocab_size:
        message = f"prompt ids up to {ids - 1} are looked up among {options.vocab_size} tokens"
        raise InputError.at(folder, message, f'set data.packed_prompts to "{PROMPT_TABLE}"')
    return int(used["tokens"].sum())
