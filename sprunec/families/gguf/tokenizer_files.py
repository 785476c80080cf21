"""A GGUF's metadata as the files of a Hugging Face tokenizer that finds the ids that llama.cpp finds; no torch."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sprunec.families.gguf.pre_tokenizers import as_json, known
from sprunec.families.gguf.sentencepiece_pieces import BYTES, SPACE
from sprunec.families.gguf.special_tokens import ROLES, TEMPLATE
from sprunec.families.gguf.token_table import Kind
from sprunec.families.gguf.tokenizers import BPE, PIECES, PREFIX, UNIGRAM

INSTEAD = "give the model's own tokenizer.json"
_ADDED = (Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN)
_PREFIX = {PIECES: True, UNIGRAM: True}  # whether a space is put in front where no key says so
_FRAMED = {PIECES: (True, False), UNIGRAM: (False, True)}  # whether bos and eos are added where no key says so
_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Write the texts of tokenizer.json and tokenizer_config.json, and of the chat template if there is one, by name.

    Raises:
        ValueError: the file has no tokenizer, or one that is not known here.
    """
    reader = _Reader(metadata)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {ROLES[role]: reader.tokens[row] for role, row in reader.ids.items()}
    found = {"tokenizer.json": json.dumps(reader.document(), ensure_ascii=False)}
    found["tokenizer_config.json"] = json.dumps(config, ensure_ascii=False, indent=2)
    template = metadata.get(TEMPLATE)
    return found | ({"chat_template.jinja": template} if isinstance(template, str) else {})


def missing(metadata: Mapping[str, Any]) -> str:
    """Say what keeps `tokenizer_files` from writing a tokenizer, as far as its names tell; "" where nothing does."""
    try:
        reader = _Reader(metadata)
        return "" if reader.model != BPE or known(reader.way) is not None else reader.unknown_way
    except ValueError as error:
        return str(error)


class _Reader:
    """The keys about the tokenizer; all of them may be wrong."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.model = self._one("model", str, "")
        if not self.model:
            raise ValueError("it has no tokenizer")
        if self.model not in (BPE, PIECES, UNIGRAM):
            raise ValueError(f"its tokenizer is {self.model!r}, which is not known here")
        self.way = self._one("pre", str, "")
        self.unknown_way = f"how it parts a text, {self.way or 'which it does not say'!r}, is not known here"
        self.tokens = self._many("tokens", str)
        kinds = self._many("token_type", int) or [Kind.NORMAL] * len(self.tokens)
        if not self.tokens or len(kinds) != len(self.tokens) or len(set(self.tokens)) != len(self.tokens):
            raise ValueError("its tokens are not one text and one kind for each id")
        self.kinds = [Kind(kind) if kind in list(Kind) else Kind.UNUSED for kind in kinds]
        named = {role: self._one(f"{role}_token_id", int, -1) for role in ROLES}
        self.ids = {role: row for role, row in named.items() if 0 <= row < len(self.tokens)}

    def _one(self, key: str, kind: type, default: Any) -> Any:
        found = self.metadata.get(f"{PREFIX}.{key}", default)
        if type(found) is not kind:
            raise ValueError(f"its {PREFIX}.{key} is of another kind than the key has")
        return found

    def _many(self, key: str, *kinds: type) -> list[Any]:
        found = self.metadata.get(f"{PREFIX}.{key}", ())
        if not isinstance(found, Sequence) or isinstance(found, str) or any(type(each) not in kinds for each in found):
            raise ValueError(f"its {PREFIX}.{key} is of another kind than the key has")
        return list(found)

    def document(self) -> dict[str, Any]:
        """Make what tokenizer.json holds."""
        made = {BPE: self._byte_level, PIECES: self._pieces, UNIGRAM: self._unigram}[self.model]()
        added = list(self._added())
        common = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
        return common | made | {"post_processor": self._frame()}

    def _added(self) -> Iterator[dict[str, Any]]:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for row, (text, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)):
            if kind in _ADDED:
                yield {"id": row, "content": text, **flags, "special": kind != Kind.USER_DEFINED}

    def _vocabulary(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.tokens) if self.kinds[row] != Kind.UNUSED}

    def _byte_level(self) -> dict[str, Any]:
        if (way := known(self.way)) is None:
            raise ValueError(self.unknown_way)
        merges = [tuple(merge.split(" ", 1)) for merge in self._many("merges", str)]
        vocabulary = self._vocabulary()
        if any(len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys() for pair in merges):
            raise ValueError("its merges are of other tokens than it has")
        return {
            "normalizer": {"type": "NFC"} if way.composed else None,
            "pre_tokenizer": as_json(way),
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "model": _bpe(vocabulary, merges, ignore_merges=way.whole),
        }

    def _pieces(self) -> dict[str, Any]:
        vocabulary, scores, unknown = self._vocabulary(), self._scores(), self._unknown()
        if any(byte not in vocabulary for byte in BYTES):
            raise ValueError("it lacks a token for a byte")
        plain = {text: row for text, row in vocabulary.items() if self.kinds[row] == Kind.NORMAL}
        order = sorted((text for text in plain if len(text) > 1), key=lambda text: (-scores[plain[text]], plain[text]))
        merges = [pair for text in order for pair in _halves(text, plain)]
        model = _bpe(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
        steps = [{"type": "Prepend", "prepend": SPACE}, _MARK] if self._prefix() else [_MARK]
        decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
        decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
        decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if self._prefix() else []
        return {
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": model,
        }

    def _unigram(self) -> dict[str, Any]:
        scores, charsmap = self._scores(), self._many("precompiled_charsmap", int)
        steps: list[dict[str, Any]] = []
        if charsmap:
            if not all(0 <= value < 256 for value in charsmap):
                raise ValueError("its table of characters is not one of bytes")
            packed = base64.b64encode(bytes(charsmap)).decode()
            steps.append({"type": "Precompiled", "precompiled_charsmap": packed})
        if self._one("remove_extra_whitespaces", bool, False):
            steps.append({"type": "Strip", "strip_left": False, "strip_right": True})
            steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE})
        scheme = "always" if self._prefix() else "never"
        space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        vocabulary = [[text, score] for text, score in zip(self.tokens, scores, strict=True)]
        unknown = self.tokens.index(self._unknown())
        return {
            "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
            "pre_tokenizer": space,
            "decoder": space,
            "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": False},
        }

    def _scores(self) -> list[float]:
        found = self._many("scores", float, int)
        if len(found) != len(self.tokens):
            raise ValueError("it has no score for each token")
        return found

    def _unknown(self) -> str:
        rows = [row for row, kind in enumerate(self.kinds) if kind == Kind.UNKNOWN]
        row = self.ids.get("unknown", rows[0] if rows else None)
        if row is None:
            raise ValueError("it has no token for what has none")
        return str(self.tokens[row])

    def _prefix(self) -> bool:
        return bool(self._one("add_space_prefix", bool, _PREFIX[self.model]))

    def _frame(self) -> dict[str, Any] | None:
        """Make what adds the tokens that begin and end a text."""
        roles = dict(zip(("bos", "eos"), _FRAMED.get(self.model, (False, False)), strict=True))
        asked = {role: self._one(f"add_{role}_token", bool, default) for role, default in roles.items()}
        names = {role: self.tokens[self.ids[role]] for role in roles if asked[role] and role in self.ids}
        if not names:
            return None
        special = {name: {"id": name, "ids": [self.tokens.index(name)], "tokens": [name]} for name in names.values()}
        return {"type": "TemplateProcessing", "special_tokens": special} | {
            "single": _pieced(names, "A"),
            "pair": [*_pieced(names, "A"), *_pieced(names, "B")],
        }


def _pieced(names: Mapping[str, str], which: str) -> list[dict[str, Any]]:
    kind = "AB".index(which)
    found = {role: {"SpecialToken": {"id": name, "type_id": kind}} for role, name in names.items()}
    middle = {"Sequence": {"id": which, "type_id": kind}}
    return [each for each in (found.get("bos"), middle, found.get("eos")) if each is not None]


def _bpe(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, ...]], **more: Any) -> dict[str, Any]:
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **plain, **flags, **more, "vocab": vocabulary, "merges": [list(pair) for pair in merges]}


def _halves(text: str, vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """List the ways to make a piece of two."""
    for at in range(1, len(text)):
        if text[:at] in vocabulary and text[at:] in vocabulary:
            yield text[:at], text[at:]
