"""The tokenizer of a Hugging Face directory as the metadata of a GGUF file: the same text gives the same ids there.

tokenizer.json and what stands beside it are read, and nothing else; needs no torch. Byte-level BPE keeps its merges,
pieces of SentencePiece their worth. What llama.cpp cannot be told is refused; where it does otherwise on some texts,
and nothing can be done about it, a note says on which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sprunec.checkpoint.gguf_file import is_gguf, read_gguf
from sprunec.errors import FormatError, InputError
from sprunec.families.gguf import pre_tokenizers
from sprunec.families.gguf.sentencepiece_pieces import SPACE, Spaces, crossing, put_merged, put_weighted, read_spaces
from sprunec.families.gguf.special_tokens import TEMPLATE, TEMPLATES, chat_templates, framed, read_object, special_ids
from sprunec.families.gguf.token_table import Added, Kind, TokenTable, added_tokens, overlapping

PREFIX = "tokenizer.ggml"
BPE, PIECES, UNIGRAM = "gpt2", "llama", "t5"  # llama.cpp's names of models
COMPOSED = "characters that are not composed (NFC) are composed by the tokenizer, and not by llama.cpp"
WRITE_ONE = "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
TIES = "of ways to part a word that are worth the same llama.cpp may take another, since it looks at no word alone"
STRIPPED = "white space beside some added tokens is dropped by the tokenizer, and not by llama.cpp"


class Field(NamedTuple):
    """One key of a GGUF file.

    Attributes:
        kind: the name of its `GGUFValueType`, and `of` that of a list's entries.
    """

    key: str
    value: Any
    kind: str
    of: str = ""


@dataclass(frozen=True)
class TokenizerFields:
    """A tokenizer's keys, and on which texts llama.cpp is known to find other ids than the directory's tokenizer."""

    fields: tuple[Field, ...]
    notes: tuple[str, ...]


def tokenizer_metadata(directory: Path, vocab_size: int) -> TokenizerFields:
    """Read a directory's tokenizer; that of a model that is a GGUF file itself stays as it is.

    Args:
        vocab_size: the rows of the model's embedding, which may be more than its tokens.

    Raises:
        FormatError: there is none, or llama.cpp has no such tokenizer.
        InputError: a file of it is damaged.
    """
    if is_gguf(directory):
        return TokenizerFields(tuple(_kept(read_gguf(directory).metadata)), ())
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise _refused(f"there is no tokenizer.json, which {WRITE_ONE} writes")
    document, config = read_object(path), read_object(directory / "tokenizer_config.json")
    try:
        return _metadata(directory, document, config, TokenTable(vocab_size))
    except ValueError as error:
        raise _refused(str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        message = f"is no tokenizer: {type(error).__name__} {error}"
        raise InputError.at(path, message, "give the tokenizer.json of the model") from error


def _refused(why: str) -> FormatError:
    return FormatError(f"the format gguf cannot hold this model's tokenizer: {why}")


def _kept(metadata: Mapping[str, Any]) -> Iterator[Field]:
    """Give the keys that a file has, in the types that writers give them."""
    lists = {f"{PREFIX}.token_type": "INT32", f"{PREFIX}.precompiled_charsmap": "UINT8"}
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    for key, value in metadata.items():
        if key.startswith("tokenizer.") and not isinstance(value, list):
            yield Field(key, value, kinds[type(value)])
        elif key.startswith("tokenizer.") and value:
            yield Field(key, value, "ARRAY", lists.get(key, kinds[type(value[0])]))


class _Model(NamedTuple):
    """What a kind of model adds to the keys, the notes on it, and the token that stands for what has none."""

    fields: list[Field]
    notes: tuple[str, ...] = ()
    unknown: str | None = None
    pieces: bool = True


def _metadata(
    directory: Path, document: Mapping[str, Any], config: Mapping[str, Any], table: TokenTable
) -> TokenizerFields:
    added, kind = added_tokens(document, config), document["model"]["type"]
    if kind not in ("BPE", "Unigram"):
        raise ValueError(f"it is {kind}, and llama.cpp has BPE and Unigram for models that write")
    if kind == "Unigram":
        model = _unigram(document, table)
    else:
        model = _byte_level(document, table) if _is_bytewise(document) else _pieces(document, table, added)
    for token in added:
        _put_added(table, token, model)
    table.check()
    rows = {text: row for row, text in enumerate(table.texts) if table.kinds[row] != Kind.UNUSED}
    ids = special_ids(directory, config, rows)
    fields = [*model.fields, *_listed(table, scored=model.pieces), *_special(document, config, ids)]
    return TokenizerFields((*fields, *_templates(directory, config)), (*_added_notes(added), *model.notes))


def _added_notes(added: list[Added]) -> Iterator[str]:
    if any(token.strips for token in added):
        yield STRIPPED
    if other := overlapping(added):
        yield f"of added tokens that overlap, as {other!r} may, the tokenizer takes the first and llama.cpp the longest"


def _is_bytewise(document: Mapping[str, Any]) -> bool:
    given = document.get("pre_tokenizer") or {}
    return any(step["type"] == "ByteLevel" for step in given.get("pretokenizers", [given]) if "type" in step)


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List merges as pairs, of either way to write them."""
    pairs = (each.split(" ", 1) if isinstance(each, str) else each for each in model["merges"])
    return [(left, right) for left, right in pairs]


def _plain(model: Mapping[str, Any], *unlike: str) -> None:
    """Raises ValueError where a BPE model has what llama.cpp's have not."""
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", *unlike):
        if model.get(key):
            raise ValueError(f"its BPE has {key} {model[key]!r}, which llama.cpp's has not")


def _byte_level(document: Mapping[str, Any], table: TokenTable) -> _Model:
    model, normalizer = document["model"], document.get("normalizer")
    _plain(model, "byte_fallback")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if other := next((step["type"] for step in steps if step["type"] != "NFC"), ""):
        raise ValueError(f"llama.cpp cannot be told of its normalizer {other}")
    notes = (COMPOSED,) if steps else ()
    name = pre_tokenizers.find_name(document.get("pre_tokenizer"), whole=bool(model.get("ignore_merges")))
    if texts := pre_tokenizers.KNOWN[name].differs:
        notes = (*notes, f"llama.cpp's own pattern {name} parts some texts otherwise: {texts}")
    for text, row in model["vocab"].items():
        table.put(row, text)
    merges = [f"{left} {right}" for left, right in _merges(model)]
    fields = [Field(f"{PREFIX}.model", BPE, "STRING"), Field(f"{PREFIX}.pre", name, "STRING")]
    return _Model([*fields, Field(f"{PREFIX}.merges", merges, "ARRAY", "STRING")], notes, pieces=False)


def _pieces(document: Mapping[str, Any], table: TokenTable, added: list[Added]) -> _Model:
    model, spaces = document["model"], read_spaces(document)
    _plain(model, "ignore_merges")
    if not model.get("byte_fallback"):
        raise ValueError("its BPE is of characters, and what it lacks is not spelled in bytes (byte_fallback)")
    if spaces.squeezed or spaces.charsmap:
        raise ValueError("its BPE changes characters or spaces before it merges, and llama.cpp's does not")
    _check_parted(spaces, model["vocab"])
    found = {token.text for token in added if not _is_merged(token)} | {model.get("unk_token")}
    put_merged(table, model["vocab"], _merges(model), found)
    fields = [Field(f"{PREFIX}.model", PIECES, "STRING"), *_spaces(spaces)]
    return _Model(fields, spaces.notes, model.get("unk_token"))


def _unigram(document: Mapping[str, Any], table: TokenTable) -> _Model:
    model, spaces = document["model"], read_spaces(document)
    if model.get("byte_fallback"):
        raise ValueError("it is Unigram that spells in bytes what no piece has, and llama.cpp's has one token for that")
    _check_parted(spaces, (piece for piece, _ in model["vocab"]))
    put_weighted(table, model["vocab"], model.get("unk_id"))
    fields = [Field(f"{PREFIX}.model", UNIGRAM, "STRING"), *_spaces(spaces)]
    fields.append(Field(f"{PREFIX}.remove_extra_whitespaces", spaces.squeezed, "BOOL"))
    if spaces.charsmap:
        fields.append(Field(f"{PREFIX}.precompiled_charsmap", list(spaces.charsmap), "ARRAY", "UINT8"))
    notes = (*spaces.notes, TIES) if spaces.parted else spaces.notes
    return _Model(fields, notes, model["vocab"][model["unk_id"]][0])


def _check_parted(spaces: Spaces, vocabulary: Any) -> None:
    if spaces.parted and (piece := crossing(vocabulary)):
        raise ValueError(f"it looks at each word alone, and llama.cpp would find {piece!r} in several")


def _spaces(spaces: Spaces) -> Iterator[Field]:
    yield Field(f"{PREFIX}.pre", "default", "STRING")
    yield Field(f"{PREFIX}.add_space_prefix", spaces.prefix, "BOOL")


def _is_merged(token: Added) -> bool:
    """Tell whether an added token is found by merging alone: a text has spaces where it has the signs for them."""
    return SPACE in token.text and not token.special and not token.normalized


def _put_added(table: TokenTable, token: Added, model: _Model) -> None:
    """Put an added token over what the vocabulary says."""
    if model.pieces and _is_merged(token) and table.kinds[token.id] == Kind.NORMAL:
        return
    kind = Kind.CONTROL if token.special else Kind.USER_DEFINED
    text = token.text.replace(SPACE, " ") if model.pieces and not token.special else token.text
    table.put(token.id, text, Kind.UNKNOWN if token.text == model.unknown else kind)


def _listed(table: TokenTable, *, scored: bool) -> Iterator[Field]:
    yield Field(f"{PREFIX}.tokens", table.texts, "ARRAY", "STRING")
    yield Field(f"{PREFIX}.token_type", [int(kind) for kind in table.kinds], "ARRAY", "INT32")
    if scored:
        yield Field(f"{PREFIX}.scores", table.scores, "ARRAY", "FLOAT32")


def _special(document: Mapping[str, Any], config: Mapping[str, Any], ids: Mapping[str, int]) -> Iterator[Field]:
    for role, row in ids.items():
        yield Field(f"{PREFIX}.{role}_token_id", row, "UINT32")
    for role, there in framed(document, config, ids).items():
        yield Field(f"{PREFIX}.add_{role}_token", there, "BOOL")


def _templates(directory: Path, config: Mapping[str, Any]) -> Iterator[Field]:
    found = chat_templates(directory, config)
    others = sorted(name for name in found if name != "default")
    if others:
        yield Field(TEMPLATES, others, "ARRAY", "STRING")
    for name in others:
        yield Field(f"{TEMPLATE}.{name}", found[name], "STRING")
    if "default" in found:
        yield Field(TEMPLATE, found["default"], "STRING")
