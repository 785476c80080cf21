"""What is to be known of an architecture of llama.cpp, to write a model as a GGUF file and to read one; no torch.

Names and keys are those of the package `gguf` (its `constants`); what a graph can hold is as llama.cpp's `src/models/`
loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, NamedTuple


class Order(Enum):
    """How a tensor lies in a file, against how it lies in a directory of `transformers`."""

    SAME = auto()
    QUERIES = auto()  # rows 0, E/2, 1, E/2+1, ... of each head: the two halves that are turned together, interleaved
    KEYS = auto()  # the same for each key-value group
    PARTS = auto()  # rows (3, H, E): all queries, all keys, all values; the directory has (H, 3, E)
    TURNED = auto()  # a matrix (out, in); the directory has (in, out). Its bias is the same
    PLUS_ONE = auto()  # a norm's scale; the directory has it less one


class Module(NamedTuple):
    """What a module's weight and bias are called in a file, and how they lie there."""

    name: str
    order: Order = Order.SAME


class Number(NamedTuple):
    """A key of config.json that a file has by a name of its own, and what the class takes where it is absent."""

    key: str
    default: float | bool | None


# What counts the units of a model, by the letters of `huggingface.tensor_layouts`.
SIZES = {
    "context_length": "P",
    "embedding_length": "D",
    "block_count": "L",
    "feed_forward_length": "F",
    "attention.head_count": "H",
    "attention.head_count_kv": "G",
    "attention.key_length": "E",
    "attention.value_length": "E",
    "vocab_size": "V",
}
BY_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")  # lists, where layers differ
RMS, LAYER_NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
SCORE_CAP, FINAL_CAP = "attn_logit_softcapping", "final_logit_softcapping"
WINDOW = "attention.sliding_window"
WINDOWS = "attention.sliding_window_pattern"  # a list: whether a layer sees a window; absent, `Architecture.pattern`
# How positions are turned, by the keys of config.json's `rope_parameters`, in older ones `rope_scaling`.
ROPE = {
    "rope.freq_base": "rope_theta",
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}
ATTENTION_FACTOR = "rope.scaling.attn_factor"  # of longrope; yarn's follows from its factor
ROTARY_DIMS = "rope.dimension_count"
LOCAL_BASE = "rope.freq_base_swa"  # of the layers that see a window
FREQUENCIES = "rope_freqs"  # a tensor (E / 2,): what llama3 divides each frequency by; a file has no key for that
LONG, SHORT = "rope_factors_long", "rope_factors_short"  # the same for longrope: the context's length says which


@dataclass(frozen=True)
class Architecture:
    """One graph of llama.cpp, and one `model_type` that it computes.

    Attributes:
        name: what a file's `general.architecture` says.
        model_type: of a model that is written so, and that a file is read as, if no row above has the name.
        block: modules of a block, by their names in a directory; in a file `blk.N.` stands before theirs.
        tables: tensors outside of the blocks.
        numbers: by their names in a file, where the architecture's own stands before them.
        activation: config.json's key of it, and what the graph computes; the first one is what the class takes.
        defaults: of the class, for keys that `SIZES` and `ROPE` stand for.
        needs: what other keys of config.json must be, where they are there.
        positions: whether they are turned, and not looked up in a table.
        rotary_share: config.json's key of how much of a head is turned, and what the class takes; None: all of it.
        scalings: the kinds of `rope_type` that it has.
        by_layer: whether sizes may differ from layer to layer, and sublayers be absent.
        free_heads: whether H · E may differ from D.
        pattern: each so-many-th layer sees all positions, and the others a window; 0: all of them see all.
        local_base: the base of layers with a window, where config.json has none; 0: as of all others.
        tied: whether the head is the embedding: always, never, or, None, where a file has none.
        score_scale: config.json's key of what scores are divided by the root of; "": it is E.
        whole_scale: so many layers make it D / H there.
    """

    name: str
    model_type: str
    block: Mapping[str, Module]
    tables: Mapping[str, Module]
    numbers: Mapping[str, Number]
    activation: tuple[str, ...]
    defaults: Mapping[str, Any]
    needs: Mapping[str, Any] = field(default_factory=dict)
    positions: bool = True
    rotary_share: Number | None = None
    scalings: tuple[str, ...] = ("default", "linear", "yarn")
    by_layer: bool = False
    free_heads: bool = True
    pattern: int = 0
    local_base: float = 0.0
    tied: bool | None = None
    score_scale: str = ""
    whole_scale: int = 0

    def but(self, name: str, model_type: str, **more: Any) -> Architecture:
        """Make a relative's row: mappings are added to those here."""
        added = {key: {**getattr(self, key), **value} for key, value in more.items() if isinstance(value, dict)}
        return replace(self, name=name, model_type=model_type, **(more | added))
