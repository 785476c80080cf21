"""Run a teacher once over all batches of a training pass, and keep its most likely tokens for every student of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.graph.arithmetic import Text, by_block, forward
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs
from sprunec.graph.options import BatchOptions
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass
from sprunec.plan.scale import TOGETHER

if TYPE_CHECKING:
    from sprunec.data.batches import Batch

BYTES_A_TOKEN, BYTES_A_POSITION = 4 + 2, 4  # an id and its log probability; the logarithm of what is left
BYTES_A_SEQUENCE = 16 + 8  # its hash, and where it begins


@dataclass(frozen=True, kw_only=True)
class CacheOptions(BatchOptions):
    """The batches of a training pass, and what is kept of the teacher at their positions.

    Attributes:
        temperature: that of the probabilities: the rest's at one temperature does not follow from that at another.
        on: at which positions, see `places_of`.
    """

    steps: int
    first_step: int
    precision: str
    top_k: int
    temperature: float = 1.0
    on: str = "targets"

    @property
    def text(self) -> Text:
        return Text(self.steps * self.batch_size, self.max_length)


def add(build: Builder, teacher: str, training: Any, top_k: int) -> str:
    """Add the node of a teacher and the batches of a training pass with these options.

    Args:
        teacher: the node that gives it.
    """
    distillation = training.distillation
    same = {key: getattr(training, key) for key in ("steps", "first_step", "precision", "seed")}
    about = f"the {top_k} most likely tokens, {training.steps} steps"
    options = build.options(
        CacheOptions, **same, top_k=top_k, temperature=distillation.temperature, on=distillation.logits_on
    )
    build.flops += forward(build.sizes[teacher], options.text, head=True)
    return build.add("teacher-cache", options, {"model": teacher, "data": build.data}, about=about)


def needs(build: Builder, node: Node) -> Needs:
    """Count every position of every sequence; where only answers are asked for, or sequences come again, it is less."""
    model, options, text = build.sizes[node.inputs["model"]], node.options, node.options.text
    found = by_block(model, text, forward(model, text, head=True), keep=build.keep, head=True)
    kept = text.positions * (BYTES_A_TOKEN * options.top_k + BYTES_A_POSITION) + text.sequences * BYTES_A_SEQUENCE
    return replace(found, disk=kept)


def run(job: Job[CacheOptions]) -> dict[str, Any]:
    from sprunec.data.batches import grouped, places_of
    from sprunec.durable import file_sha256, link_file
    from sprunec.engines.distilling.cached_teacher import write_index, write_part
    from sprunec.models.meta_models import empty_model
    from sprunec.models.top_tokens import top_tokens

    options, config, data = job.options, job.config(), job.data(job.config())
    folder = job.out if job.saves is None else job.saves.directory
    width = max(config.width, 2 * options.top_k)
    done, keys, positions, parts = _restored(job, folder), dict[bytes, int](), list[int](), list[int]()
    batches = _unseen((data.batch(options.first_step + step) for step in range(options.steps)), keys)
    for number, group in enumerate(grouped(batches, lambda batch: batch.targets.numel() * width, TOGETHER)):
        for batch in group:
            positions += places_of(batch, options.on).sum(1).tolist()
        parts.append(sum(len(batch.targets) for batch in group))
        if number < len(done):
            continue
        way, known = job.block_by_block(empty_model(config), group), {"temperature": options.temperature}
        found = top_tokens(way, job.place, options.top_k, **known, on=options.on, before=done)
        done = [*done, {path.name: file_sha256(path) for path in write_part(folder, number, found)}]
    write_index(job.out, list(keys), positions, parts)
    for name in (name for part in done for name in part if folder != job.out):
        link_file(folder / name, job.out / name)
    return {"sequences": len(keys), "positions": sum(positions), "top_k": options.top_k, "kept": _kept(job.out)}


def _restored(job: Job[CacheOptions], folder: Path) -> list[Mapping[str, str]]:
    """Find what was written before a kill: by part, the hashes of its files; nothing if one is not as it was."""
    from sprunec.durable import file_sha256

    saved = job.saves.latest() if job.saves is not None else None
    parts: list[Mapping[str, str]] = saved["found"] if saved is not None else []
    hashes = [(folder / name, digest) for part in parts for name, digest in part.items()]
    return parts if all(path.is_file() and file_sha256(path) == digest for path, digest in hashes) else []


def _unseen(batches: Iterable[Batch], keys: dict[bytes, int]) -> Iterator[Batch]:
    """Leave out sequences that have come before; `keys` numbers the others."""
    from sprunec.data.batches import Batch
    from sprunec.engines.distilling.cached_teacher import sequence_keys

    for batch in batches:
        rows = list[int]()
        for row, key in enumerate(sequence_keys(batch)):
            if key not in keys:
                keys[key] = len(keys)
                rows.append(row)
        if rows:
            yield Batch({name: tensor[rows] for name, tensor in batch.inputs.items()}, batch.targets[rows])


def _kept(folder: Path) -> float:
    """Tell how much of all probability the tokens that are kept have, in the mean over positions."""
    import numpy as np

    from sprunec.data.saved import load_array

    left = [np.exp(load_array(path).astype(np.float64)) for path in sorted(folder.glob("*-rest.npy"))]
    return 1.0 - float(np.concatenate(left).mean())


TEACHER_CACHE = Pass("teacher-cache", 1, CacheOptions, ("model", "data"), "cache", needs=needs, by_block=True)
