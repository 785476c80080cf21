"""The shape of a causal language model of `transformers`, layer by layer, by its config.json and its card; no torch.

The config is kept as it was in the file: what a class of any release reads from it stays what it was. Beside it stands
what each layer has left.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sprunec.checkpoint.safetensors_file import Shape
from sprunec.families.base_config import LayerIndices
from sprunec.families.huggingface.model_types import LAYOUTS
from sprunec.families.huggingface.tensor_layouts import UNITS, Layout, read_sizes
from sprunec.units import INSIDE, SUBLAYERS

FAMILY = "huggingface"
SPELLED_OUT = ("bloom", "gemma2", "gptj")  # their attention caps scores, or some release has no other for them
_TERM = re.compile(r"(\d*)([A-Z]*)")


@dataclass(frozen=True)
class TransformersLayer:
    """One layer; no heads, no dim_ff: that sublayer is absent.

    Attributes:
        kv_groups: 0 where every head has a group of its own.
        dim_head: 0 where a head's dims are of several kinds.
    """

    heads: int
    kv_groups: int
    dim_head: int
    dim_ff: int

    @property
    def counts(self) -> dict[str, int]:
        """How many units of each kind it has; absent sublayers have none."""
        attention = {"kv_group": self.kv_groups, "head": self.heads, "dim_head": self.dim_head} if self.heads else {}
        return {unit: count for unit, count in (attention | {"dim_ff": self.dim_ff}).items() if count}

    @property
    def inner(self) -> dict[str, int]:
        """How wide the queries are, and the feed-forward; 0 where they are absent."""
        return {"attention": self.heads * (self.dim_head or 1), "feed_forward": self.dim_ff}

    def resized(self, counts: Mapping[str, int]) -> TransformersLayer:
        """Shape the layer with so many units of these kinds; heads follow their groups."""
        sizes = self.counts | dict(counts)
        heads, groups, dim_head = (sizes.get(unit, 0) for unit in ("head", "kv_group", "dim_head"))
        if self.kv_groups and "head" not in counts:
            heads = self.heads // self.kv_groups * groups
        there = bool(heads and (dim_head or not self.dim_head) and (groups or not self.kv_groups))
        return TransformersLayer(heads * there, groups * there, dim_head * there, sizes.get("dim_ff", 0))


@dataclass(frozen=True)
class TransformersConfig:
    """A model of `transformers`.

    Attributes:
        source: config.json's text.
        layers: one for each layer of the plan's input model; one without sublayers has been removed.
        traced: of a class that has no row in `model_types.py`, what has been found in it, as JSON.
    """

    source: str
    layers: tuple[TransformersLayer, ...]
    tie_word_embeddings: bool
    traced: str = ""
    family: str = FAMILY

    @classmethod
    def from_source(cls, document: Mapping[str, Any], traced: Mapping[str, Any] | None = None) -> TransformersConfig:
        """Read what config.json says.

        Args:
            traced: what `traced_layout` says of its class, where no row does.

        Raises:
            ValueError: it lacks a size.
        """
        if traced:
            layers = tuple(TransformersLayer(**layer) for layer in traced["layers"])
            return cls(json.dumps(document), layers, traced["tied"], json.dumps(traced))
        layout = LAYOUTS[document["model_type"]]
        sizes = read_sizes(layout, document)
        groups = sizes["G"] if sizes["G"] != sizes["H"] else 0
        layer = TransformersLayer(sizes["H"], groups, sizes.get("E", 0), sizes["F"])
        tied = {**layout.defaults, **document}.get("tie_word_embeddings", False)
        return cls(json.dumps(document), (layer,) * sizes["L"], bool(tied))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TransformersConfig:
        """Read what `to_dict` has written."""
        layers = tuple(TransformersLayer(**layer) for layer in data["layers"])
        traced = data.get("traced")
        return cls(
            json.dumps(data["config"]), layers, data["tie_word_embeddings"], json.dumps(traced) if traced else ""
        )

    def to_dict(self) -> dict[str, Any]:
        layers = [vars(layer) for layer in self.layers]
        found = {"family": FAMILY, "tie_word_embeddings": self.tie_word_embeddings, "layers": layers}
        return found | ({"traced": self.found} if self.traced else {}) | {"config": self.document}

    @cached_property
    def document(self) -> dict[str, Any]:
        """What config.json says."""
        found: dict[str, Any] = json.loads(self.source)
        return found

    @cached_property
    def found(self) -> dict[str, Any]:
        """What has been found in a class without a row of data; nothing of one that has."""
        return dict(json.loads(self.traced)) if self.traced else {}

    @cached_property
    def layout(self) -> Layout:
        return Layout(**self.found["layout"]) if self.traced else LAYOUTS[self.document["model_type"]]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The sizes of the plan's input model, by letter; those of layers, only where all have one."""
        return self.found["sizes"] if self.traced else read_sizes(self.layout, self.document)

    @property
    def width(self) -> int:
        return self.sizes["D"]

    @property
    def vocab_size(self) -> int:
        return self.sizes["V"]

    @property
    def overhead(self) -> int:
        return 0

    @property
    def keeps_scores(self) -> bool:
        kind = self.document.get("model_type")
        return kind in SPELLED_OUT or bool(self.document.get("attn_logit_softcapping"))

    @property
    def head_sets(self) -> list[tuple[int, ...]]:
        return [tuple(range(heads)) for heads in {layer.heads for layer in self.layers if layer.heads}]

    @property
    def uncut(self) -> TransformersConfig:
        """The whole input model."""
        whole = TransformersConfig.from_source(self.document, self.found)
        return whole.with_head(own=not self.tie_word_embeddings)

    @property
    def left(self) -> list[int]:
        """The layers that have not been removed, by their numbers in the plan's input model."""
        return [index for index, layer in enumerate(self.layers) if layer.counts]

    def with_layers(self, layers: Iterable[TransformersLayer]) -> TransformersConfig:
        return replace(self, layers=tuple(layers))

    def with_head(self, *, own: bool) -> TransformersConfig:
        """Give the same model with a head that is not its embedding, or that is."""
        return replace(self, tie_word_embeddings=not own)

    def cut(self, before: Sequence[LayerIndices], after: Sequence[LayerIndices]) -> TransformersConfig:
        """Give the config once only `after` is left; both in the plan's input model's indices."""
        counts = ({unit: len(layer.get(unit, ())) for unit in old} for old, layer in zip(before, after, strict=True))
        return self.with_layers(layer.resized(left) for layer, left in zip(self.layers, counts, strict=True))

    def tensors(self) -> dict[str, Shape]:
        """Give name and shape of every tensor, by the names that they have on disk; absent sublayers have none."""
        tables = self._named(self.layout.tables)
        if self.tie_word_embeddings:
            del tables[self.layout.head]
        found = {name: self.shape(size, {}) for name, size in tables.items()}
        for index, layer in enumerate(self.layers):
            parts = {name: size for part in self.parts(index) for name, size in self._named(part).items()}
            block = f"{self.layout.blocks}.{index}"
            found |= {f"{block}.{name}": self.shape(size, layer.counts) for name, size in parts.items()}
        return found

    def parts(self, index: int) -> list[Mapping[str, str]]:
        """List what is there of a layer, each as its tensors' sizes."""
        there = {INSIDE[unit] for unit in self.layers[index].counts}
        parts = [getattr(self.layout, kind) for kind in SUBLAYERS if kind in there]
        return [*parts, self.layout.both] if parts else []

    def parameters(self) -> int:
        return sum(map(math.prod, self.tensors().values()))

    def size_terms(self, layer: int, sublayer: str) -> dict[tuple[str, ...], int]:
        """Count what a sublayer has for each combination of its units."""
        found = Counter[tuple[str, ...]]()
        for size in self._named(getattr(self.layout, sublayer)).values():
            found.update(self._product(size, self.layers[layer].counts))
        return dict(found)

    def _named(self, tensors: Mapping[str, str]) -> dict[str, str]:
        """Leave out those that this config has not."""
        values = {**self.layout.defaults, **self.document}
        split = {name.partition("?"): size for name, size in tensors.items()}
        return {name: size for (name, asks, key), size in split.items() if not asks or values.get(key)}

    def _product(self, size: str, counts: Mapping[str, int]) -> Counter[tuple[str, ...]]:
        """Multiply a tensor's dims out: how often each combination of units is in it."""
        found = Counter[tuple[str, ...]]({(): 1})
        for dim in size.split():
            before, found = found, Counter()
            for number, units in self._dim(dim, counts):
                for others, count in before.items():
                    found[tuple(sorted((*others, *units)))] += count * number
        return found

    def shape(self, size: str, counts: Mapping[str, int]) -> Shape:
        """Put a layer's counts in the place of letters."""
        dims = (
            [n * math.prod(counts[unit] for unit in units) for n, units in self._dim(d, counts)] for d in size.split()
        )
        return tuple(map(sum, dims))

    def _dim(self, dim: str, counts: Mapping[str, int]) -> list[tuple[int, tuple[str, ...]]]:
        """Read a dim as a sum of numbers times units."""
        terms = []
        for term in dim.split("+"):
            match = _TERM.fullmatch(term)
            assert match is not None, dim
            number, units = int(match[1] or 1), []
            for letter in match[2]:
                unit = UNITS.get(letter, "")
                if unit == "kv_group" and "kv_group" not in counts:
                    unit = "head"
                if unit in INSIDE:
                    units.append(unit)
                else:
                    number *= self.sizes[letter]
            terms.append((number, tuple(units)))
        return terms
