"""What every family of models says of its code, for the rooms that know none; what needs no torch is on its card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sprunec.checkpoint.reader import Tensors
    from sprunec.checkpoint.writer import Output
    from sprunec.families.block_calls import CalledBlock

Inputs = Mapping[str, "Tensor"]
Given = Mapping[str, tuple["Tensor", ...]]  # by block path, what it is given besides its hidden states
Entered = tuple["Tensor", Given]  # hidden states (B, N, D) in front of the first block, and that
Past = list["tuple[Tensor, Tensor] | None"]  # by block, keys and values


@dataclass(frozen=True)
class Document:
    """One text of n tokens, of which each family makes its own inputs.

    Attributes:
        tokens: (n,) ids.
        context: (n,); what may be seen from anywhere in the document. The rest is seen from behind it.
        targets: (n,) the token that is asked for behind each one, or `IGNORED`.
        task, segment: what a data set made for a family says of the document, and (n,) of its tokens. None: it is to
            be continued or, where a part of it is context, answered.
    """

    tokens: NDArray[np.integer[Any]]
    context: NDArray[np.bool_]
    targets: NDArray[np.integer[Any]]
    task: int | None = None
    segment: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Family:
    """A family's code; the module that its card names has it as `FAMILY`.

    Attributes:
        build, initialize: a model on the current default device; its weights, by a seed.
        native_outputs: (config, tensors of a file) -> the model's, each made when it is written.
        arrange: (config, rows, width, base) -> inputs of its `forward` for rows of documents that fit, and where
            (B, width) their tokens stand; `length` (B,), the positions in use, is among the inputs, and the others are
            (B, width). What `base` is, data sets made for the family know.
        proceed: (config, document) -> what its `generate` is given to go on behind a document.
        called: of a library's class, whose `build` makes all blocks of the whole input model: how they are called. They
            are then traced as they are, and graphs that are cut to the config take their place.
        kinds, examples: by block path, what decides a block's code (a library's class says it otherwise); what each of
            its methods is given, on meta.
        cache_shapes: by block, (heads, width) of its keys and values; None without attention.
        frame: modules whose text, without their relative imports, is a model without its blocks. The last one's class
            `frame_class(config, layers, cache_shapes)` is the model.
        row_numbers: how many numbers a row of so many positions takes between two blocks, at most.
        looked_up: by embedding, the ids that batches look up in it.
        enter: inputs -> hidden states in front of the first block, and what blocks are given besides.
        entrance: modules that take part in that, but for tables that tokens are looked up in.
        head, leave: modules behind the last block, the weight of the last one with a row a token; hidden states (n, D)
            -> logits, for whatever rows that weight has.
        stored_names: of a config, tensors that a run has by another name on disk: the one that they are emitted by.
        write_huggingface: writes an `Emission` as a directory that transformers opens, and says what the report does.
        write_shape: writes such a directory of a config without weights, to measure how fast its class is.
        huggingface_texts: (config, the directory's config, inputs) -> for each row, what its class can be given of it.
        decode: (model, inputs, steps, text) -> what the first block is given for the longest row of a batch, up to
            `text` tokens: in one go, and with its last `steps` positions one by one; and the empty past to begin with.
    """

    build: Callable[[Any], nn.Module]
    called: Callable[[Any], Sequence[CalledBlock]] | None
    initialize: Callable[[nn.Module, int], None]
    native_outputs: Callable[[Any, Tensors], dict[str, Output]]
    arrange: Callable[[Any, Sequence[Sequence[Document]], int, int], tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]]
    proceed: Callable[[Any, Document], dict[str, Any]]
    kinds: Callable[[Any], Mapping[str, Any]]
    examples: Callable[[Any], Mapping[str, Any]]
    cache_shapes: Callable[[Any], Sequence[tuple[int, int] | None]]
    frame: tuple[ModuleType, ...]
    frame_class: str
    row_numbers: Callable[[Any, int], int]
    looked_up: Callable[[Any, Iterable[Inputs]], Mapping[str, Tensor]]
    enter: Callable[[Any, Inputs], Entered]
    entrance: Callable[[Any], tuple[str, ...]]
    head: Callable[[Any], tuple[str, ...]]
    leave: Callable[[Any, Tensor], Tensor]
    stored_names: Callable[[Any], Mapping[str, str]]
    write_huggingface: Callable[[Any, Path], dict[str, Any]]
    write_shape: Callable[[Any, Path], None]
    huggingface_texts: Callable[[Any, Mapping[str, Any], Inputs], list[Inputs]]
    decode: Callable[[Any, Inputs, int, int], tuple[Entered, list[Entered], Past]]


def family_of(config: ModelConfig) -> Family:
    """Import the code of a config's family, and with it torch."""
    found: Family = import_module(card_of(config).code).FAMILY
    return found
