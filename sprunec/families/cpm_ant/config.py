"""The shape of a CPM-Ant, layer by layer, and what it weighs; needs no torch.

A config is CPM-Live's JSON keys plus, for a model that was cut, what differs by layer (`layers`) and the dims whose
square roots still divide (`divisors`): a cut slices weights and leaves every divisor what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

FAMILY = "cpm-ant"
TEXT_TASK, PAIR_TASK, TEXT_SEGMENT = 2, 1, 2  # prompts of plain text and of pairs to learn from; what texts are
CPM_LIVE_DEFAULTS = {
    "vocab_size": 30720,
    "dim_model": 4096,
    "num_heads": 64,
    "dim_head": 64,
    "dim_ff": 10240,
    "num_layers": 32,
    "position_bias_num_buckets": 512,
    "position_bias_max_distance": 2048,
    "eps": 1e-6,
    "prompt_types": 32,
    "prompt_length": 32,
    "segment_types": 32,
}


@dataclass(frozen=True)
class Divisors:
    """The dims under the square roots that divide: of the output projections' inputs, and of the score."""

    attention_out: int
    score: int
    feed_forward_out: int


@dataclass(frozen=True)
class LayerKept:
    """What one layer keeps, by the indices of the plan's input model; None: the sublayer is absent."""

    heads: tuple[int, ...] | None
    dim_head: tuple[int, ...] | None
    dim_ff: tuple[int, ...] | None


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
    def bias_columns(self) -> tuple[int, ...]:
        return tuple(range(self.heads)) if self.kept_heads is None else self.kept_heads

    def everything(self) -> LayerKept:
        heads = tuple(range(self.heads)) or None
        dims = tuple(range(self.dim_head)) if heads else None
        return LayerKept(heads, dims, tuple(range(self.dim_ff)) or None)

    def cut(self, before: LayerKept, after: LayerKept, table_heads: int) -> LayerShape:
        """The shape once only `after` is left of `before`; both in the plan's input model's indices."""
        heads, dims = after.heads or (), after.dim_head or ()
        columns = self.kept_heads
        if heads != before.heads and before.heads is not None:
            old = dict(zip(before.heads, self.bias_columns, strict=True))
            columns = tuple(old[head] for head in heads)
        if not heads or columns == tuple(range(table_heads)):
            columns = None
        return LayerShape(len(heads), len(dims) if heads else 0, len(after.dim_ff or ()), columns)


@dataclass(frozen=True)
class ModelConfig:
    """A CPM-Ant's shape. `num_heads` counts the bias table's columns; `layers` says what each layer has.

    Attributes:
        tie_word_embeddings: the head is the table that words are looked up in, not a tensor of its own.
    """

    vocab_size: int
    dim_model: int
    num_heads: int
    dim_head: int
    dim_ff: int
    num_layers: int
    position_bias_num_buckets: int
    position_bias_max_distance: int
    eps: float
    prompt_types: int
    prompt_length: int
    segment_types: int
    divisors: Divisors
    layers: tuple[LayerShape, ...] = field(default_factory=tuple)
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
        """The CPM-Ant keys, then what only a cut model needs."""
        data = {"family": self.family} | {key: getattr(self, key) for key in CPM_LIVE_DEFAULTS}
        if not self.tie_word_embeddings:
            data["tie_word_embeddings"] = False
        absent = [[layer.heads == 0, layer.dim_ff == 0] for layer in self.layers]
        if any(any(pair) for pair in absent):
            data["mask_modules"] = absent
        layers = [_layer_dict(layer) for layer in self.layers]
        whole = _layer_dict(LayerShape(self.num_heads, self.dim_head, self.dim_ff))
        if any(layer != whole for layer in layers):
            data["layers"] = layers
        return data | {"divisors": asdict(self.divisors)}

    @property
    def bias_rows(self) -> int:
        return self.segment_types**2 + self.position_bias_num_buckets

    def attention_parameters(self, index: int) -> int:
        layer = self.layers[index]
        return (4 * layer.heads * layer.dim_head + 1) * self.dim_model if layer.heads else 0

    def feed_forward_parameters(self, index: int) -> int:
        layer = self.layers[index]
        return (3 * layer.dim_ff + 1) * self.dim_model if layer.dim_ff else 0

    def prunable_parameters(self) -> int:
        """All sublayers with their norms."""
        each = (self.attention_parameters(i) + self.feed_forward_parameters(i) for i in range(self.num_layers))
        return sum(each)

    def parameters(self) -> int:
        """All, the embeddings, a head of its own, the bias table and the last norm with them."""
        tables = 1 if self.tie_word_embeddings else 2
        rows = tables * self.vocab_size + self.prompt_types * self.prompt_length + self.segment_types + 1
        return rows * self.dim_model + self.bias_rows * self.num_heads + self.prunable_parameters()

    def everything(self) -> tuple[LayerKept, ...]:
        return tuple(layer.everything() for layer in self.layers)

    def cut(self, before: Sequence[LayerKept], after: Sequence[LayerKept]) -> ModelConfig:
        """The config once only `after` is left of `before`."""
        triples = zip(self.layers, before, after, strict=True)
        return replace(self, layers=tuple(layer.cut(old, new, self.num_heads) for layer, old, new in triples))


def _read_layers(data: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[LayerShape, ...]:
    if data.get("layers") is not None:
        return tuple(_read_layer(entry) for entry in data["layers"])
    absent = data.get("mask_modules") or [[False, False]] * base["num_layers"]
    return tuple(
        LayerShape(
            0 if no_attention else base["num_heads"],
            0 if no_attention else base["dim_head"],
            0 if no_feed_forward else base["dim_ff"],
        )
        for no_attention, no_feed_forward in absent
    )


def _read_layer(entry: Mapping[str, Any]) -> LayerShape:
    columns = entry.get("kept_heads")
    return LayerShape(
        entry.get("heads") or 0,
        entry.get("dim_head") or 0,
        entry.get("dim_ff") or 0,
        None if columns is None else tuple(columns),
    )


def _layer_dict(layer: LayerShape) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "heads": layer.heads or None,
        "dim_head": layer.dim_head or None,
        "dim_ff": layer.dim_ff or None,
    }
    return entry | ({"kept_heads": list(layer.kept_heads)} if layer.kept_heads is not None else {})


def local(before: LayerKept, after: LayerKept) -> LayerKept:
    """What is `after` in the indices of a layer that has only `before` left."""
    return LayerKept(
        _positions(before.heads, after.heads),
        _positions(before.dim_head, after.dim_head),
        _positions(before.dim_ff, after.dim_ff),
    )


def _positions(before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if before is None or after is None:
        return None
    place = {index: position for position, index in enumerate(before)}
    return tuple(place[index] for index in after)


def kept_to_json(kept: Sequence[LayerKept]) -> list[dict[str, list[int] | None]]:
    """As plain lists, one object a layer."""
    return [{key: None if v is None else list(v) for key, v in vars(layer).items()} for layer in kept]


def kept_from_json(data: Sequence[Mapping[str, Sequence[int] | None]]) -> tuple[LayerKept, ...]:
    return tuple(
        LayerKept(**{key: None if value is None else tuple(value) for key, value in layer.items()}) for layer in data
    )
