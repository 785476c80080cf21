"""The format `pt2`: the forward as an exported program, which needs torch alone; any rows, and two tokens or more."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.durable import naming
from sprunec.errors import FormatError
from sprunec.families.base import Document
from sprunec.families.base_config import ModelConfig
from sprunec.plan.export_formats import Emission, Format, Reopened
from sprunec.unexpected import own_words

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sprunec.checkpoint.reader import Tensors
    from sprunec.families.base import Inputs

WEIGHTS = "model.pt2"
LEAST = 2  # tokens in a row


def write(emission: Emission, directory: Path) -> dict[str, Any]:
    import torch

    from sprunec.checkpoint.writer import nbytes_in
    from sprunec.models.loading import load_model

    model, inputs = load_model(emission.model).eval(), example(emission.config)
    rows = torch.export.Dim("rows", min=1)
    width = torch.export.Dim("columns", min=emission.config.overhead + LEAST)
    shapes = {name: {0: rows, 1: width} if tensor.dim() == 2 else {0: rows} for name, tensor in inputs.items()}
    try:
        program = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=shapes)
    except Exception as error:  # whatever this release of torch cannot export
        raise FormatError(f"the format pt2 cannot hold this model: {own_words(error)}") from error
    directory.mkdir()
    path = directory / WEIGHTS
    with naming(path, nbytes_in(model.state_dict())), path.open("wb") as stream:  # Python's, whose OSErrors say how
        torch.export.save(program, stream)
    return {"dtype": str(max(model.parameters(), key=torch.numel).dtype).removeprefix("torch.")}


def example(config: ModelConfig) -> dict[str, Tensor]:
    """Make inputs to export `forward` by; each is a tensor of its own, or export takes them for one."""
    import numpy as np

    from sprunec.data.batches import Packer

    tokens = np.zeros(7, dtype=np.int64)
    document = Document(tokens, tokens == 1, tokens)
    return Packer(config, config.overhead + tokens.size).pack([[document]] * 2).inputs


def read(directory: Path) -> nn.Module:
    import torch

    module: nn.Module = torch.export.load(directory / WEIGHTS).module()
    return module


def reopen(directory: Path, config: ModelConfig, weights: Tensors) -> Reopened:
    """Open it in the dtype that it was exported in."""
    import torch
    import torch.nn.functional as F

    from sprunec.data.batches import in_use

    least, names = config.overhead + LEAST, tuple(example(config))

    def wide_enough(batch: Inputs) -> list[Inputs]:
        """Pad what is one token wide: an exported program takes no such rows."""
        if all(tensor.dim() == 1 or tensor.size(1) >= least for tensor in batch.values()):
            return [batch]
        return [{name: tensor if tensor.dim() == 1 else F.pad(tensor, (0, 1)) for name, tensor in batch.items()}]

    @torch.no_grad()
    def logits(inputs: list[Inputs]) -> Tensor:
        program = read(directory)
        return torch.cat([program(*(batch[name] for name in names))[0][in_use(batch)] for batch in inputs])

    stored = weights.dtype(max(weights, key=lambda name: math.prod(weights.shape(name))))
    return Reopened(stored, stored, logits, wide_enough)


PT2 = Format("pt2", write, reopen, in_memory=2)  # as a module, and as what is written or has been read
