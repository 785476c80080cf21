"""What users look for in OUT: masks, recipe, exported formats; put there out of the store when a run has ended well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sprunec.checkpoint.layouts import SAFETENSORS, TORCH
from sprunec.checkpoint.provenance import note_weights, write_origin
from sprunec.durable import copy_file, flush, link_file, naming, remove
from sprunec.execution.model_card import put_card
from sprunec.graph.graph import Graph

if TYPE_CHECKING:
    from sprunec.execution.report import Report
    from sprunec.execution.store import Artifact

PUBLISHED = ("model", "masks", "recipe.json")
WEIGHTS = (*SAFETENSORS, *TORCH, ".pt2", ".gguf")  # of files with these endings OUT and the store share one


def publish(graph: Graph, out: Path, done: Mapping[str, Artifact], report: Report) -> None:
    """Make everything aside, then put it in place of what an earlier run has published."""
    aside = out / ".publishing"
    remove(aside)
    aside.mkdir(parents=True)
    with naming(aside):
        _make(graph, aside, done, report)
    for path in aside.rglob("*"):
        flush(path)
    unpublish(out)
    for path in aside.iterdir():
        path.rename(out / path.name)
    aside.rmdir()
    if graph.checkpoint_name is not None:
        for path in (path for node in graph.nodes for path in node.writes.values()):
            note_weights(path, out / graph.checkpoint_name)


def _make(graph: Graph, aside: Path, done: Mapping[str, Artifact], report: Report) -> None:
    from sprunec.checkpoint.torch_writer import write_pt
    from sprunec.checkpoint.writer import as_outputs
    from sprunec.families.model_directory import open_model_tensors, read_config, read_kept
    from sprunec.masks.mask_tensors import write_masks

    roles = graph.roles
    if roles.origin:
        source, final = (read_kept(done[name].path) for name in (roles.source, roles.final))
        write_masks(aside / "masks", source, final)
        copy_file(done[roles.origin].path / "origin" / "recipe.json", aside / "recipe.json")
    if roles.emitted:
        emitted, failed = done[roles.emitted].path, report.failed_forms()
        origin = report.origin(str(done[roles.emitted].manifest["made"]))
        configs = tuple(read_config(done[name].path) for name in (roles.source, roles.final))
        for form in (path for path in emitted.iterdir() if path.is_dir() and path.name not in failed):
            # One by one: the first that fails says which it is, and how.
            for file in (path for path in form.rglob("*") if path.is_file()):
                target = aside / "model" / file.relative_to(emitted)
                target.parent.mkdir(parents=True, exist_ok=True)
                (link_file if file.suffix in WEIGHTS else copy_file)(file, target)
            written = done[roles.emitted].manifest["metrics"]["forms"][form.name]
            put_card(aside / "model" / form.name, origin, written, configs)
            write_origin(aside / "model" / form.name, origin)
    if graph.checkpoint_name is not None:  # what a next plan starts from, in the shape that this one has started from
        write_pt(as_outputs(open_model_tensors(done[roles.full].path)), aside / graph.checkpoint_name)


def unpublish(out: Path) -> None:
    """Take away what an earlier run has published: it would not be what the report tells of. The store keeps it."""
    for name in PUBLISHED:
        remove(out / name)
