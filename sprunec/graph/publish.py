"""What users look for in OUT: masks, recipe, the emitted forms; copied out of the store when a run has ended well."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from sprunec.graph.graph import Graph

PUBLISHED = ("model", "masks", "recipe.json")


def publish(graph: Graph, out: Path, artifacts: Mapping[str, Path]) -> None:
    """Make everything aside, then put it in place of what an earlier run has published."""
    aside = out / ".publishing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if "origin" in graph.roles:
        _masks_and_recipe(graph, aside, artifacts)
    if "emitted" in graph.roles:
        emitted = artifacts[graph.roles["emitted"]]
        for form in (path for path in emitted.iterdir() if path.is_dir()):
            shutil.copytree(form, aside / "model" / form.name)
    unpublish(out)
    for path in aside.iterdir():
        path.rename(out / path.name)
    aside.rmdir()


def unpublish(out: Path) -> None:
    """Take away what an earlier run has published: it would not be what the report tells of. The store keeps it."""
    for name in PUBLISHED:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _masks_and_recipe(graph: Graph, aside: Path, artifacts: Mapping[str, Path]) -> None:
    from sprunec.masks.files import write_masks
    from sprunec.model.checkpoint import read_kept

    source, final = (read_kept(artifacts[graph.roles[role]]) for role in ("source", "final"))
    write_masks(aside / "masks", source, final)
    shutil.copyfile(artifacts[graph.roles["origin"]] / "origin" / "recipe.json", aside / "recipe.json")
