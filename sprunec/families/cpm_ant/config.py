"""The shape of a CPM-Ant, layer by layer; needs no torch, and nothing else of this package: models bring it along.

A config is CPM-Live's JSON keys plus, for a model that was cut, what differs by layer (`layers`) and the dims whose
square roots still divide (`divisors`): a cut slices weights and leaves every divisor what it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

FAMILY = "cpm-ant"
TEXT_TASK, PAIR_TASK, TEXT_SEGMENT = 2, 1, 2  # prompts of plain text and of pairs to learn from; what texts are
LAYER_SIZES = ("heads", "dim_head", "dim_ff")
# The tensors of each kind of sublayer, by their modules' names in a layer, and their dims: D is the model's width, I
# the product of the numbers of the sublayer's units.
SUBLAYER_TENSORS = {
    "attention": {
        "self_att.layernorm_before_attention": "D",
        "self_att.self_attention.project_q": "ID",
        "self_att.self_attention.project_k": "ID",
        "self_att.self_attention.project_v": "ID",
        "self_att.self_attention.attention_out": "DI",
    },
    "feed_forward": {
        "ffn.layernorm_before_ffn": "D",
        "ffn.ffn.w_in.w_0": "ID",
        "ffn.ffn.w_in.w_1": "ID",
        "ffn.ffn.w_out": "DI",
    },
}
UNITS = {"attention": ("head", "dim_head"), "feed_forward": ("dim_ff",)}
LayerIndices = Mapping[str, tuple[int, ...]]  # by unit inside a sublayer; absent sublayers have none


@dataclass(frozen=True)
class Divisors:
    """The dims under the square roots that divide: of the output projections' inputs, and of the score."""

    attention_out: int
    score: int
    feed_forward_out: int


@dataclass(frozen=True)
class LayerShape:
    """One layer; 0 heads: no attention; 0 dim_ff: no feed-forward.

    Attributes:
        kept_heads: the columns of the shared bias table that this layer's heads read; None: all, in order.
    """

    heads: int
    dim_head: int
    dim_ff: int
    kept_heads: tuple[int, ...] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many units of each kind it has; absent sublayers have none."""
        attention = {"head": self.heads, "dim_head": self.dim_head} if self.heads else {}
        return attention | ({"dim_ff": self.dim_ff} if self.dim_ff else {})

    @property
    def inner(self) -> dict[str, int]:
        """How wide each kind of sublayer is inside; 0 where it is absent."""
        return {"attention": self.heads * self.dim_head, "feed_forward": self.dim_ff}

    def resized(self, counts: Mapping[str, int]) -> LayerShape:
        """Shape the layer with so many units of these kinds; a sublayer left with none of one kind is absent."""
        sizes = {**self.counts, **counts}
        heads, dim_head = (sizes.get(unit, 0) for unit in ("head", "dim_head"))
        there = bool(heads and dim_head)
        return LayerShape(heads * there, dim_head * there, sizes.get("dim_ff", 0))

    @property
    def bias_columns(self) -> tuple[int, ...]:
        return tuple(range(self.heads)) if self.kept_heads is None else self.kept_heads

    def cut(self, before: LayerIndices, after: LayerIndices, table_heads: int) -> LayerShape:
        """Shape the layer once only `after` is left of `before`; both in the plan's input model's indices.

        Indices of heads are not columns of the bias table: a model that comes cut reads some of its columns only, and
        counts its heads anew. So a head's column is that of its position among the heads before the cut.
        """
        heads, columns = after.get("head", ()), self.kept_heads
        if "head" in before and heads != before["head"]:
            column_of = dict(zip(before["head"], self.bias_columns, strict=True))
            columns = tuple(column_of[head] for head in heads)
        if not heads or columns == tuple(range(table_heads)):
            columns = None
        return LayerShape(len(heads), len(after.get("dim_head", ())), len(after.get("dim_ff", ())), columns)


@dataclass(frozen=True)
class CpmLiveKeys:
    """The keys of CPM-Live's configs, with its defaults."""

    vocab_size: int = 30720
    dim_model: int = 4096
    num_heads: int = 64
    dim_head: int = 64
    dim_ff: int = 10240
    num_layers: int = 32
    position_bias_num_buckets: int = 512
    position_bias_max_distance: int = 2048
    eps: float = 1e-6
    prompt_types: int = 32
    prompt_length: int = 32
    segment_types: int = 32


CPM_LIVE_DEFAULTS: dict[str, Any] = asdict(CpmLiveKeys())


@dataclass(frozen=True, kw_only=True)
class ModelConfig(CpmLiveKeys):
    """A CPM-Ant's shape. `num_heads` counts the bias table's columns; `layers` says what each layer has.

    Attributes:
        tie_word_embeddings: the head is the table that tokens are looked up in, not a tensor of its own.
    """

    divisors: Divisors
    layers: tuple[LayerShape, ...] = ()
    family: str = FAMILY
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read CPM-Live's keys, ours, and the older spelling `norm_eps`; keys that say nothing here are left alone."""
        known = CPM_LIVE_DEFAULTS | {"eps": data.get("norm_eps", CPM_LIVE_DEFAULTS["eps"])}
        base = {key: data.get(key, default) for key, default in known.items()}
        divisors = Divisors(base["num_heads"] * base["dim_head"], base["dim_head"], base["dim_ff"])
        if "divisors" in data:
            divisors = Divisors(**data["divisors"])
        tied = data.get("tie_word_embeddings") is not False
        return cls(**base, divisors=divisors, layers=_read_layers(data, base), tie_word_embeddings=tied)

    def to_dict(self) -> dict[str, Any]:
        """Write the CPM-Ant keys, then what only a cut model needs."""
        data = {"family": self.family} | {key: getattr(self, key) for key in CPM_LIVE_DEFAULTS}
        if not self.tie_word_embeddings:
            data["tie_word_embeddings"] = False
        data |= self.absent_sublayers()
        layers = [_layer_dict(layer) for layer in self.layers]
        whole = _layer_dict(LayerShape(self.num_heads, self.dim_head, self.dim_ff))
        if any(layer != whole for layer in layers):
            data["layers"] = layers
        return data | {"divisors": asdict(self.divisors)}

    def absent_sublayers(self) -> dict[str, list[list[bool]]]:
        """Write CPM-Live's key for them; nothing where none is."""
        absent = [[layer.heads == 0, layer.dim_ff == 0] for layer in self.layers]
        return {"mask_modules": absent} if any(any(pair) for pair in absent) else {}

    @property
    def bias_rows(self) -> int:
        return self.segment_types**2 + self.position_bias_num_buckets

    @property
    def width(self) -> int:
        return self.dim_model

    @property
    def overhead(self) -> int:
        """How many positions of its own the model adds to a document: the prompt."""
        return self.prompt_length

    @property
    def keeps_scores(self) -> bool:
        """Whether a backward pass needs the scores of all pairs of positions: a bias is added to each of them."""
        return True

    @property
    def head_sets(self) -> list[tuple[int, ...]]:
        """The distinct sets of columns of the bias table that layers with attention read."""
        return list(dict.fromkeys(layer.bias_columns for layer in self.layers if layer.heads))

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Give name and shape of every tensor; absent sublayers have none."""
        width = self.dim_model
        tensors: dict[str, tuple[int, ...]] = {
            "prompt_embedding.weight": (self.prompt_types * self.prompt_length, width),
            "segment_embedding.weight": (self.segment_types, width),
            "input_embedding.weight": (self.vocab_size, width),
            "position_bias.relative_attention_bias": (self.bias_rows, self.num_heads),
            "encoder.output_layernorm.weight": (width,),
        }
        tensors |= {} if self.tie_word_embeddings else {"lm_head.weight": (self.vocab_size, width)}
        for index, layer in enumerate(self.layers):
            for kind, inner in layer.inner.items():
                dims = {"D": width, "I": inner}
                for name, shape in (SUBLAYER_TENSORS[kind] if inner else {}).items():
                    tensors[f"encoder.layers.{index}.{name}.weight"] = tuple(dims[dim] for dim in shape)
        return tensors

    def parameters(self) -> int:
        """Count all, the embeddings, a head of its own, the bias table and the last norm with them."""
        return sum(map(math.prod, self.tensors().values()))

    def size_terms(self, layer: int, sublayer: str) -> dict[tuple[str, ...], int]:
        """Count what a sublayer has once, its norm, and for each combination of its units."""
        shapes = list(SUBLAYER_TENSORS[sublayer].values())
        each = self.dim_model * sum("I" in shape for shape in shapes)
        return {(): self.dim_model * shapes.count("D"), UNITS[sublayer]: each}

    @property
    def uncut(self) -> ModelConfig:
        return self

    def with_layers(self, layers: Iterable[LayerShape]) -> ModelConfig:
        return replace(self, layers=tuple(layers))

    def with_head(self, *, own: bool) -> ModelConfig:
        """Give the same model with a head that is not its embedding, or that is."""
        return replace(self, tie_word_embeddings=not own)

    def cut(self, before: Sequence[LayerIndices], after: Sequence[LayerIndices]) -> ModelConfig:
        """Give the config once only `after` is left of `before`."""
        triples = zip(self.layers, before, after, strict=True)
        return replace(self, layers=tuple(layer.cut(old, new, self.num_heads) for layer, old, new in triples))


def _read_layers(data: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[LayerShape, ...]:
    if data.get("layers") is not None:
        return tuple(_read_layer(entry) for entry in data["layers"])
    heads, dim_head, dim_ff = base["num_heads"], base["dim_head"], base["dim_ff"]
    absent = data.get("mask_modules") or [[False, False]] * base["num_layers"]
    return tuple(
        LayerShape(0 if no_attention else heads, 0 if no_attention else dim_head, 0 if no_feed_forward else dim_ff)
        for no_attention, no_feed_forward in absent
    )


def _read_layer(entry: Mapping[str, Any]) -> LayerShape:
    columns = entry.get("kept_heads")
    sizes = {size: entry.get(size) or 0 for size in LAYER_SIZES}
    return LayerShape(**sizes, kept_heads=None if columns is None else tuple(columns))


def _layer_dict(layer: LayerShape) -> dict[str, Any]:
    entry: dict[str, Any] = {size: getattr(layer, size) or None for size in LAYER_SIZES}
    return entry | ({"kept_heads": list(layer.kept_heads)} if layer.kept_heads is not None else {})
