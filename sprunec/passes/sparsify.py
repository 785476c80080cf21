"""Make weights 2:4 sparse: two of every four are zero from here on; the passes that train hold them there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.errors import InputError
from sprunec.families.cards import card_of
from sprunec.graph.arithmetic import sparse
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs
from sprunec.graph.options import Options
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.named_tensors import targeted

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.checkpoint.reader import Tensors
    from sprunec.checkpoint.writer import Output
    from sprunec.masks.two_four import Pattern


@dataclass(frozen=True, kw_only=True)
class SparsifyOptions(Options):
    """A pattern, and the tensors that get it; the content of a mask file where one says which weights stay.

    Attributes:
        input_first: ends of the names of matrices whose first dim is the input.
    """

    pattern: str
    tensors: tuple[str, ...]
    content: str = ""
    input_first: tuple[str, ...] = ()

    def turned(self, name: str) -> bool:
        """Tell whether groups run along the first dim of a tensor."""
        return name.endswith(self.input_first)


def lower(build: Builder, spec: PassSpec) -> None:
    paths: tuple[Path, ...] = spec.options.get("path", ())
    content, turned = "".join(build.masks_digest(path) for path in paths), card_of(build.config).input_first
    options = build.options(SparsifyOptions, spec, content=content, input_first=turned(build.config))
    more: dict[str, Any] = {"files": {"path": paths}} if paths else {}
    more |= {"writes": {"mask": spec.options["save_mask"]}} if "save_mask" in spec.options else {}
    more["about"] = ", ".join((options.pattern, *(path.name for path in paths)))
    more["provenance"] = build.provenance(options.pattern, options.tensors)
    build.model = build.add("sparsify", options, {"model": build.model}, **more)


def needs(build: Builder, node: Node) -> Needs:
    model = build.sizes[node.inputs["model"]]
    return sparse(model, sum(map(math.prod, targeted(model.config.tensors(), node.options.tensors).values())))


def run(job: Job[SparsifyOptions]) -> dict[str, Any]:
    from sprunec.checkpoint.writer import as_outputs
    from sprunec.families.model_directory import open_model_tensors, save_outputs
    from sprunec.masks.two_four import choose, density, refuse_uneven, save_pattern, short_tiles

    config, tensors, kind, turned = job.config(), job.weights(), job.options.pattern, job.options.turned
    targets = targeted(config.tensors(), job.options.tensors)
    if not targets:
        parts = ", ".join(job.options.tensors)
        raise InputError.in_option("tensors", f"no tensor that is left has one of {parts} in its name", "name others")
    if "path" in job.files:
        from sprunec.bmcook.masks.two_four_files import read_mask_file

        pattern = read_mask_file(job.files["path"][0], kind, config.tensors(), targets, turned)
    else:
        for name, shape in targets.items():
            refuse_uneven(kind, name, shape, input_first=turned(name))
        pattern = {name: choose(kind, name, tensors[name], input_first=turned(name)) for name in targets}
    outputs = as_outputs(tensors) | {name: _masked(tensors, name, mask) for name, mask in pattern.items()}
    save_outputs(job.out, config, job.kept(), outputs)
    save_pattern(job.out, pattern)
    sparse, before = open_model_tensors(job.out), _size(tensors, pattern)
    retained = _size(sparse, pattern) / before if before else 1.0
    metrics = {"tensors": len(pattern), "density": density(sparse, pattern), "retained": retained}
    short = sum(map(short_tiles, pattern.values())) if kind == "m4n2_2d" else 0
    tiles = sum(mask.numel() for mask in pattern.values()) // 16
    notes = {"notes": [f"{short:,} of {tiles:,} tiles keep 7 weights and could keep 8"]} if short else {}
    return metrics | {"parameters": config.parameters()} | notes


def _masked(tensors: Tensors, name: str, mask: Tensor) -> Output:
    """Make a tensor when it is written, so that one at a time is in memory."""
    from sprunec.checkpoint.writer import Output

    return Output(tensors.shape(name), tensors.dtype(name), lambda: [tensors.copy(name).masked_fill_(~mask, 0)])


def _size(state: Mapping[str, Tensor], pattern: Pattern) -> float:
    """Sum all sizes |w| in the pattern's tensors."""
    import torch

    return sum(float(state[name].abs().sum(dtype=torch.float64)) for name in pattern)


def write(role: str, artifact: Path, inputs: Mapping[str, Path], path: Path) -> None:
    """Write the mask as a file in BMCook's form."""
    from sprunec.bmcook.masks.two_four_files import write_pattern

    write_pattern(artifact, path)


SPARSIFY = Pass(
    "sparsify",
    1,
    SparsifyOptions,
    ("model",),
    "model",
    lower=lower,
    needs=needs,
    removes="weights",
    refits=True,
    needs_trained=True,
)
