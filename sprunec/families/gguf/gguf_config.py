"""The config.json of the model that a GGUF file holds, by its header; needs no torch.

Numbers are those that llama.cpp computes with, and a default where a key is absent is its own. What a file says beyond
what the class in transformers can be is refused: it would be another model.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sprunec.checkpoint.gguf_file import GGUFFile, read_gguf
from sprunec.durable import read_into
from sprunec.errors import InputError, series
from sprunec.families.cards import MOST_LAYERS
from sprunec.families.gguf.architecture import (
    BY_LAYER,
    FREQUENCIES,
    LOCAL_BASE,
    LONG,
    ROPE,
    ROTARY_DIMS,
    SHORT,
    SIZES,
    WINDOW,
    WINDOWS,
)
from sprunec.families.gguf.architectures import ARCHITECTURES
from sprunec.families.huggingface.model_types import LAYOUTS
from sprunec.families.huggingface.tensor_layouts import KEYS

TABLE, HEAD, ARCHITECTURE = "token_embd.weight", "output.weight", "general.architecture"
INSTEAD = "give the directory of transformers that it was made of"
CLASSES = {"gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}
NAMES = {"gpt2": {"L": "n_layer", "D": "n_embd", "H": "n_head", "F": "n_inner", "P": "n_positions"}}
# What would change the model that is computed, by the key's end, and the value with which it does not.
FOREIGN = {"expert_count": 0, "attention.scale": 0.0, "logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0}
FOREIGN |= {"attention.causal": True, "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0}
ENDS = {"bos": "bos", "eos": "eos", "pad": "padding"}
MOST = 2**31
LOW, HIGH, TRAINED = 1.0, 4.0, 8192  # all that llama3 has been trained with


def config_document(path: Path) -> dict[str, Any]:
    """Make what config.json would hold.

    Raises:
        InputError: the file cannot be read, or is no model that is known here.
    """
    file = read_gguf(path)
    try:
        return _Document(file).made()
    except ValueError as error:
        raise InputError.at(path, f"cannot be read as a model: {error}", INSTEAD, code="foreign-config") from None


class _Document:
    """Makes a config of a header, all of whose values may be wrong."""

    def __init__(self, file: GGUFFile) -> None:
        self.metadata, self.tensors = file.metadata, file.tensors
        name, found = self.metadata.get(ARCHITECTURE), [row for row in ARCHITECTURES if not row.by_layer]
        found += [row for row in ARCHITECTURES if row.by_layer]
        if (split := self.metadata.get("split.count", 0)) not in (0, 1):
            raise ValueError(f"it is one of {split} files: put them together first, llama-gguf-split --merge")
        self.row = next((row for row in found if row.name == name), found[0])
        if self.row.name != name:
            known = series(list(dict.fromkeys(row.name for row in found)), "or")
            raise ValueError(f"its {ARCHITECTURE} is {name!r}, and it must be {known}")
        self.sizes = self._sizes()

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.row.name}.{key}", default)

    def made(self) -> dict[str, Any]:
        row, document = self.row, dict[str, Any]()
        for key, harmless in FOREIGN.items():
            if (value := self.get(key, harmless)) != harmless:
                raise ValueError(f"its {row.name}.{key} is {value}, which {LAYOUTS[row.model_type].title} has not")
        kind = row.model_type
        document["architectures"] = [CLASSES.get(kind, f"{kind.capitalize()}ForCausalLM")]
        document |= {"model_type": kind, **row.needs, row.activation[0]: row.activation[1]}
        own = "" if LAYOUTS[kind].uneven_heads else "GE"  # of a class that has a group a head, and D / H dims of each
        names = {letter: keys[0] for letter, keys in KEYS.items() if letter not in own} | NAMES.get(kind, {})
        document |= {names[letter]: size for letter, size in self.sizes.items() if letter in names}
        document |= {number.key: value for number, value in self._numbers()}
        document["tie_word_embeddings"] = HEAD not in self.tensors if row.tied is None else row.tied
        for layout_key, tensor in (("attention_bias", "attn_q.bias"), ("mlp_bias", "ffn_gate.bias")):
            if kind == "llama":
                document[layout_key] = f"blk.0.{tensor}" in self.tensors
        if row.positions:
            document |= self._rotary()
        if row.pattern:
            document |= self._windows()
        if row.score_scale:
            width, heads = self.sizes["D"], self.sizes["H"]
            whole = self.sizes["L"] == row.whole_scale
            document[row.score_scale] = width // heads if whole else self.sizes["E"]
        return document | self._ends()

    def _sizes(self) -> dict[str, int]:
        found = {letter: self._size(key) for key, letter in SIZES.items() if key != "attention.value_length"}
        if TABLE not in self.tensors or len(self.tensors[TABLE].shape) != 2:
            raise ValueError(f"it has no table of tokens, {TABLE}")
        sizes = {letter: size for letter, size in found.items() if size is not None}
        sizes["V"] = self.tensors[TABLE].shape[0]
        if lacking := next((letter for letter in "LDHF" if letter not in sizes), ""):
            key = next(key for key, letter in SIZES.items() if letter == lacking)
            raise ValueError(f"it has no {self.row.name}.{key}")
        sizes.setdefault("G", sizes["H"])
        sizes.setdefault("E", sizes["D"] // sizes["H"])
        sizes.setdefault("P", self.row.defaults.get("max_position_embeddings", 2048))
        if self.get("attention.value_length", sizes["E"]) != sizes["E"]:
            raise ValueError("its values have another width than its keys")
        if sizes["L"] > MOST_LAYERS or sizes["H"] % sizes["G"] or not sizes["E"]:
            raise ValueError(f"its sizes are none of a model: {sizes}")
        return sizes

    def _size(self, key: str) -> int | None:
        """Read a size, which is one for all layers."""
        found = self.get(key)
        if isinstance(found, list) and key in BY_LAYER and found:
            if len(set(found)) > 1:
                raise ValueError(f"its layers differ in {self.row.name}.{key}")
            found = found[0]
        if found is None:
            return None
        if type(found) is not int or not 0 < found < MOST:
            raise ValueError(f"its {self.row.name}.{key} is {found!r}")
        return found

    def _number(self, key: str, default: Any = None) -> Any:
        """Read a number as it was before it was rounded to float32."""
        found = self.get(key, default)
        if type(found) is bool or found is None:
            return found
        if type(found) not in (int, float) or not math.isfinite(found) or found < 0:
            raise ValueError(f"its {self.row.name}.{key} is {found!r}")
        return shortest(found) if isinstance(found, float) else found

    def _numbers(self) -> Iterator[tuple[Any, Any]]:
        for key, number in self.row.numbers.items():
            if key != WINDOW:
                yield number, self._number(key, number.default)

    def _rotary(self) -> dict[str, Any]:
        """Say how positions are turned, by the keys of all releases."""
        found: dict[str, Any] = {"rope_theta": self._number("rope.freq_base", 10_000.0)}
        if self.get(LOCAL_BASE) is not None or self.row.pattern > 2:
            found["rope_local_base_freq"] = self._number(LOCAL_BASE, 10_000.0)
        if (share := self.row.rotary_share) is not None:
            found[share.key] = self._number(ROTARY_DIMS, self.sizes["E"]) / self.sizes["E"]
        elif self._number(ROTARY_DIMS, self.sizes["E"]) != self.sizes["E"]:
            raise ValueError("it turns a part of each head, which its class does not")
        scaling = self._scaling()
        if scaling.get("rope_type") == "longrope":
            found["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
        return found | ({"rope_scaling": scaling} if scaling else {})

    def _scaling(self) -> dict[str, Any]:
        kind = self.get("rope.scaling.type", "none")
        if f"{FREQUENCIES}.weight" in self.tensors:
            return llama3_scaling(self._values(f"{FREQUENCIES}.weight"), self._number("rope.freq_base", 10_000.0))
        if f"{LONG}.weight" in self.tensors:
            kind = "longrope"
        if kind == "none":
            return {}
        if kind not in self.row.scalings:
            raise ValueError(f"its {self.row.name}.rope.scaling.type is {kind!r}")
        named = {name: self._number(key) for key, name in ROPE.items() if name not in ("rope_theta", "rope_type")}
        found = {"rope_type": kind} | {name: value for name, value in named.items() if value is not None}
        if kind == "longrope":
            found |= {"long_factor": self._values(f"{LONG}.weight"), "short_factor": self._values(f"{SHORT}.weight")}
            if "original_max_position_embeddings" not in found:
                raise ValueError("it does not say at which length its model was trained")
        return found

    def _values(self, name: str) -> list[float]:
        """Read a small tensor of factors."""
        place = self.tensors.get(name)
        if place is None or place.shape not in ((self.sizes["E"] // 2,), (1,)) or place.extent != 4 * place.shape[0]:
            raise ValueError(f"its {name} is not one number for each frequency")
        raw = bytearray(place.extent)
        read_into(place.file, [(place.start, place.start + place.extent)], memoryview(raw))
        found = struct.unpack(f"<{place.shape[0]}f", raw)
        if not all(math.isfinite(value) and value > 0 for value in found):
            raise ValueError(f"its {name} has numbers that are not finite")
        return [shortest(value) for value in found]

    def _windows(self) -> dict[str, Any]:
        """Say which layers see a window, and how far."""
        layers, given, every = self.sizes["L"], self.get(WINDOWS), self.row.pattern
        sliding = [bool((layer + 1) % every) for layer in range(layers)]
        if isinstance(given, list) and len(given) == layers:
            sliding = [bool(each) for each in given]
        elif type(given) is int and 0 < given < MOST:
            sliding = [bool((layer + 1) % given) for layer in range(layers)]
        elif given is not None:
            raise ValueError(f"its {self.row.name}.{WINDOWS} is not one entry a layer")
        window = self._size(WINDOW) or self.row.numbers[WINDOW].default
        kinds = ["sliding_attention" if each else "full_attention" for each in sliding]
        return {"sliding_window": window, "layer_types": kinds}

    def _ends(self) -> dict[str, int | None]:
        found = {key: self.metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in ENDS.items()}
        known = {key: row for key, row in found.items() if type(row) is int and 0 <= row < self.sizes["V"]}
        return {f"{key}_token_id": known.get(key) for key in ENDS}


def shortest(value: float) -> float:
    """Give the number with the fewest digits that float32 rounds to the same."""
    packed = struct.pack("<f", value)
    texts = (f"{value:.{digits}g}" for digits in range(1, 17))
    return next((float(text) for text in texts if struct.pack("<f", float(text)) == packed), value)


def llama3_scaling(factors: Sequence[float], base: float) -> dict[str, Any]:
    """Say how llama3 scales, by what it divides each frequency by: low ones by a factor, high ones by none.

    Raises:
        ValueError: it is not as all models of the kind have it.
    """
    factor, turns = max(factors), [TRAINED / (2 * math.pi) * base ** (-at / len(factors)) for at in range(len(factors))]
    shares = [min(1.0, max(0.0, (turn - LOW) / (HIGH - LOW))) for turn in turns]
    wanted = [factor / (1 + (factor - 1) * share) for share in shares]
    if not all(math.isclose(one, other, rel_tol=1e-4) for one, other in zip(factors, wanted, strict=True)):
        raise ValueError("its frequencies are scaled in a way that its class has not")
    bounds = {"low_freq_factor": LOW, "high_freq_factor": HIGH, "original_max_position_embeddings": TRAINED}
    return {"rope_type": "llama3", "factor": factor, **bounds}
