"""The form `pt2`: the forward as an exported program, which needs torch alone; any rows, and two words or more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.checkpoint.writer import nbytes_in
from sprunec.durable import naming
from sprunec.errors import FormError
from sprunec.families.model_directory import load_model
from sprunec.passes.emit import EmitOptions
from sprunec.passes.job import Job
from sprunec.unexpected import own_words

WEIGHTS = "model.pt2"
NAMES = ("input", "length", "context", "segment", "span")


def write(job: Job[EmitOptions], directory: Path) -> dict[str, Any]:
    model = load_model(job.inputs["model"]).eval()
    try:
        program = torch.export.export(model, example(model), dynamic_shapes=dynamic_shapes(model.prompt_length))
    except Exception as error:  # whatever this release of torch cannot export
        raise FormError(f"the form pt2 cannot hold this model: {own_words(error)}") from error
    directory.mkdir()
    path = directory / WEIGHTS
    with naming(path, nbytes_in(model.state_dict())), path.open("wb") as stream:  # Python's, whose OSErrors say how
        torch.export.save(program, stream)
    return {"dtype": str(model.input_embedding.weight.dtype).removeprefix("torch.")}


def read(directory: Path) -> nn.Module:
    module: nn.Module = torch.export.load(directory / WEIGHTS).module()
    return module


def example(model: nn.Module) -> tuple[Tensor, ...]:
    """Inputs of `CPMAnt.forward`, by which it is exported; each a tensor of its own, or export takes them for one."""
    rows, columns = 2, int(model.prompt_length) + 7  # type: ignore[arg-type]
    words, segment, span = (torch.zeros(rows, columns, dtype=torch.long) for _ in range(3))
    return words, torch.full((rows,), columns), torch.zeros(rows, columns, dtype=torch.bool), segment, span


def dynamic_shapes(prompt_length: int) -> dict[str, dict[int, torch.export.Dim]]:
    rows = torch.export.Dim("rows", min=1)
    columns = torch.export.Dim("columns", min=prompt_length + 2)
    return {name: {0: rows} if name == "length" else {0: rows, 1: columns} for name in NAMES}
