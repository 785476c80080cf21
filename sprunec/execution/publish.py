"""What users look for in OUT: masks, recipe, exported formats; copied out of the store when a run has ended well."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sprunec.checkpoint.provenance import note_weights, write_origin
from sprunec.durable import copy_file, flush, naming, remove
from sprunec.graph.graph import Graph

PUBLISHED = ("model", "masks", "recipe.json")


def publish(
    graph: Graph, out: Path, artifacts: Mapping[str, Path], origin: Mapping[str, Any], failed: Collection[str] = ()
) -> None:
    """Make everything aside, then put it in place of what an earlier run has published.

    Args:
        origin: what an emitted model says about where it comes from.
        failed: the forms that are not published.
    """
    aside = out / ".publishing"
    remove(aside)
    aside.mkdir(parents=True)
    with naming(aside):
        _make(graph, aside, artifacts, origin, failed)
    for path in aside.rglob("*"):
        flush(path)
    unpublish(out)
    for path in aside.iterdir():
        path.rename(out / path.name)
    aside.rmdir()
    if graph.checkpoint_name is not None:
        for path in (path for node in graph.nodes for path in node.writes.values()):
            note_weights(path, out / graph.checkpoint_name)


def _make(
    graph: Graph, aside: Path, artifacts: Mapping[str, Path], origin: Mapping[str, Any], failed: Collection[str]
) -> None:
    from sprunec.checkpoint.torch_writer import write_pt
    from sprunec.checkpoint.writer import as_outputs
    from sprunec.families.model_directory import open_model_tensors, read_kept
    from sprunec.masks.mask_tensors import write_masks

    roles = graph.roles
    if roles.origin:
        source, final = (read_kept(artifacts[name]) for name in (roles.source, roles.final))
        write_masks(aside / "masks", source, final)
        copy_file(artifacts[roles.origin] / "origin" / "recipe.json", aside / "recipe.json")
    if roles.emitted:
        for form in (path for path in artifacts[roles.emitted].iterdir() if path.is_dir() and path.name not in failed):
            _copy(form, aside / "model" / form.name)
            write_origin(aside / "model" / form.name, origin)
    if graph.checkpoint_name is not None:  # what a next plan starts from, in the shape that this one has started from
        write_pt(as_outputs(open_model_tensors(artifacts[roles.full])), aside / graph.checkpoint_name)


def _copy(folder: Path, to: Path) -> None:
    """Copy files one by one: the first that fails says which it is, and how."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        target = to / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(file, target)


def unpublish(out: Path) -> None:
    """Take away what an earlier run has published: it would not be what the report tells of. The store keeps it."""
    for name in PUBLISHED:
        remove(out / name)
