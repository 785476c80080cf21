"""What the data pass does with a CPM-Live set: see which records are of use, and keep only where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.bmcook.data.records import Index, Limits, Status, make_index
from sprunec.bmcook.data.sets import read_set
from sprunec.bmcook.data.stream import PROMPT_TABLE, save_live_data
from sprunec.errors import InputError

if TYPE_CHECKING:
    from sprunec.passes.job import Job


def read_sets(job: Job[Any], held_out: float | Path) -> dict[str, Any]:
    """Index the training part and the held-out part; the metrics of the pass."""
    options = job.options
    model = options.of_model
    limits = Limits(options.room, options.vocab_size, model["prompt_types"], model["segment_types"])
    index = _index(job, "paths", limits)
    if isinstance(held_out, Path):
        parts = {"train": (index, "paths"), "held_out": (_index(job, "held_out", limits), "held_out")}
    else:
        # the last share of the records in use is held out, one of them at least
        used = (index["status"] == Status.USED).nonzero()[0]
        kept = len(used) - max(1, round(len(used) * held_out))
        cut = int(used[kept]) if kept >= 1 else len(index)
        parts = {"train": (index[:cut], "paths"), "held_out": (index[cut:], "paths")}
    for name, (part, role) in parts.items():
        folder, tasks = job.files[role][0].parent, _used(part)["task"]
        if not len(tasks):
            message = f"none of the {len(part)} records of the {name} part can be used"
            raise InputError.at(folder, message, "give a larger set, or a larger data.max_length")
        ids = (int(tasks.max()) + 1) * model["prompt_length"]
        if options.packed_prompts != PROMPT_TABLE and ids > options.vocab_size:
            message = f"prompt ids up to {ids - 1} are looked up among {options.vocab_size} tokens"
            raise InputError.at(folder, message, f'set data.packed_prompts to "{PROMPT_TABLE}"')
    save_live_data(job.out, parts, {"order": options.order, "packed_prompts": options.packed_prompts})
    return _counts({name: part for name, (part, _) in parts.items()})


def _index(job: Job[Any], role: str, limits: Limits) -> Index:
    return make_index(read_set(job.files[role][0].parent, job.options.block_size), limits)


def _used(index: Index) -> Index:
    used: Index = index[index["status"] == Status.USED]
    return used


def _counts(parts: dict[str, Index]) -> dict[str, Any]:
    unused = {
        status.name.lower(): sum(int((index["status"] == status).sum()) for index in parts.values())
        for status in Status
        if status != Status.USED
    }
    return {
        "records": sum(len(index) for index in parts.values()),
        "dropped": sum(unused.values()),
        "training_tokens": int(_used(parts["train"])["tokens"].sum()),
        "held_out_tokens": int(_used(parts["held_out"])["tokens"].sum()),
        **unused,
    }
