"""Vocabularies of SentencePiece as GGUF has them: BPE by scores, and Unigram; needs no torch.

llama.cpp's BPE of pieces knows no merges. It puts together any two neighbours whose text is a piece, the best piece
first and of equals the leftmost. That is what a list of merges does where it is one that was made of pieces: every way
to halve a piece is a merge, and the merges of a piece stand together. Both are checked; other lists are refused.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sprunec.families.gguf.token_table import Kind, TokenTable

SPACE = "\u2581"  # stands for a space in a piece
BYTES = dict.fromkeys(f"<0x{value:02X}>" for value in range(256))  # by value
FIRST_NOTE = "behind special tokens within a text llama.cpp puts a space, and the tokenizer does not"
SPACE_NOTE = "a text that begins with a space gets one more from llama.cpp, and none from the tokenizer"
END_NOTE = "white space that is no space is dropped at a text's end by the tokenizer, and not by llama.cpp"
SHIFTED = {"type": "Split", "behavior": "MergedWithPrevious"}


@dataclass(frozen=True)
class Spaces:
    """What becomes of spaces before a text is looked at.

    Attributes:
        prefix: one is put in front.
        squeezed: several in a row become one, and those at the end go.
        charsmap: SentencePiece's own table of characters that stand for others, as bytes.
        parted: words are looked at each alone.
        notes: where llama.cpp does otherwise.
    """

    prefix: bool
    squeezed: bool = False
    charsmap: bytes = b""
    parted: bool = False
    notes: tuple[str, ...] = ()


def read_spaces(document: Mapping[str, Any]) -> Spaces:
    """Read how a tokenizer.json's normalizer and pre-tokenizer treat spaces.

    Raises:
        ValueError: they do something that llama.cpp cannot be told.
    """
    prefix, squeezed, charsmap, replaced, stripped = False, False, b"", False, False
    for step in _flat(document.get("normalizer"), "normalizers"):
        kind, pattern = step["type"], step.get("pattern") or {}
        if kind == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif kind == "Replace" and pattern == {"String": " "} and step.get("content") == SPACE:
            replaced = True
        elif kind == "Replace" and pattern == {"Regex": " {2,}"} and step.get("content") in (" ", SPACE):
            squeezed = True
        elif kind == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
        elif kind == "Strip" and not step.get("strip_left"):
            stripped = True
        else:
            raise ValueError(f"llama.cpp cannot be told of its normalizer {kind}")
    # A table of characters makes spaces of all other white space first.
    found = Spaces(prefix, squeezed, charsmap, notes=(END_NOTE,) if stripped and not charsmap else ())
    for step in _flat(document.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step.get("replacement", SPACE) == SPACE and not replaced:
            found = _metaspace(found, step)
        elif step["type"] != "WhitespaceSplit" and not (
            replaced and SHIFTED.items() <= step.items() and step.get("pattern") == {"String": " "}
        ):
            raise ValueError(f"llama.cpp cannot be told of its pre-tokenizer {step['type']}")
    return found


def _metaspace(found: Spaces, step: Mapping[str, Any]) -> Spaces:
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    notes = {"first": (FIRST_NOTE, SPACE_NOTE), "always": (SPACE_NOTE,), "never": ()}[scheme]
    if found.squeezed:
        notes = tuple(note for note in notes if note != SPACE_NOTE)
    both = (*found.notes, *notes)
    return replace(found, prefix=scheme != "never", parted=bool(step.get("split", True)), notes=both)


def _flat(given: Mapping[str, Any] | None, key: str) -> Iterable[Mapping[str, Any]]:
    if given is not None and given["type"] == "Sequence":
        for each in given[key]:
            yield from _flat(each, key)
    elif given is not None:
        yield given


def put_merged(
    table: TokenTable, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], found: Collection[str | None]
) -> None:
    """Put pieces into the table, worth the more the earlier they are merged.

    Args:
        found: tokens that are found in a text before anything is merged.

    Raises:
        ValueError: llama.cpp would merge where these merges do not, or in another order; or it lacks a byte.
    """
    if lacking := [byte for byte in BYTES if byte not in vocabulary]:
        raise ValueError(f"it has no piece {lacking[0]} for a byte, which llama.cpp needs for what no piece has")
    place = _places(merges)
    given = set(merges)
    for piece, row in vocabulary.items():
        for at in range(1, len(piece)) if piece not in BYTES and piece not in found else ():
            halves = piece[:at], piece[at:]
            if halves not in given and all(half in vocabulary or len(half) == 1 for half in halves):
                raise ValueError(
                    f"its merges are not those of pieces: llama.cpp would make {piece!r} of {halves[0]!r} and "
                    f"{halves[1]!r} too"
                )
        kind = Kind.BYTE if piece in BYTES else Kind.NORMAL
        table.put(row, piece, kind, float(-place.get(piece, len(place))))


def _places(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Number the pieces that merges make, in the order of their merges."""
    found, last = dict[str, int](), ""
    for left, right in merges:
        piece = left + right
        if piece != last and found.setdefault(piece, len(found)) != len(found) - 1:
            raise ValueError(f"the merges to {piece!r} do not stand together, and llama.cpp has one worth for a piece")
        last = piece
    return found


def put_weighted(table: TokenTable, pieces: Sequence[Sequence[Any]], unknown: int | None) -> None:
    """Put the pieces of a Unigram model into the table, with the logarithms of their probabilities.

    Raises:
        ValueError: nothing stands for what no piece has.
    """
    if unknown is None:
        raise ValueError("it has no token for what no piece has, which llama.cpp needs")
    for row, (piece, score) in enumerate(pieces):
        table.put(row, piece, Kind.UNKNOWN if row == unknown else Kind.NORMAL, float(score))


def crossing(vocabulary: Iterable[str]) -> str:
    """Find a piece that goes on behind a space within it: there are none of words that are looked at alone."""
    return next((piece for piece in vocabulary if SPACE in piece[1:]), "")
