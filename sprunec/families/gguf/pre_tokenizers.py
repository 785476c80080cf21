"""How byte-level BPE parts a text before it merges, under the names that llama.cpp has for it; needs no torch.

A GGUF file names one of llama.cpp's ways, and a tokenizer.json spells one out. The same way is found by what it does,
step by step, and never by whose model it is; a way that llama.cpp has no name for has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
LLAMA3 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_OTHERS}|{_SPACES}"
QWEN2 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_OTHERS}|{_SPACES}"
QWEN35 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
TEKKEN = rf"{'|'.join(_CASED)}|\p{{N}}|{_SLASHES}|{_SPACES}"
GPT4O = rf"{_CASED[0]}{_ENGLISH}?|{_CASED[1]}{_ENGLISH}?|\p{{N}}{{1,3}}|{_SLASHES}|{_SPACES}"

Step = tuple[str, ...]
WORDS: Step = ("ByteLevel", "words")  # GPT-2's own pattern, which is built in
BYTES: Step = ("ByteLevel",)
DIGITS: Step = ("Digits",)


def _split(pattern: str) -> tuple[Step, Step]:
    return ("Split", pattern), BYTES


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's ways.

    Attributes:
        steps: what a tokenizer.json does one after the other.
        whole: a part that is a token is not looked into, `ignore_merges`.
        composed: models with it compose characters first (NFC), which llama.cpp does not.
        differs: where llama.cpp's own pattern is not quite the tokenizer's, on which texts.
        also: other names for the same.
    """

    steps: tuple[Step, ...]
    whole: bool = False
    composed: bool = False
    differs: str = ""
    also: tuple[str, ...] = ()


_CASES = "letters beyond A to Z whose case decides where a word ends, and combining marks"
KNOWN = {
    "gpt-2": PreTokenizer((WORDS,), also=("phi-2", "olmo", "mpt", "gigachat", "mellum", "jais", "trillion", "exaone4")),
    "smollm": PreTokenizer(
        (DIGITS, WORDS), also=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2")
    ),
    "qwen2": PreTokenizer(_split(QWEN2), composed=True, also=("deepseek-r1-qwen", "megrez", "hunyuan", "stablelm2")),
    "qwen35": PreTokenizer(_split(QWEN35), composed=True),
    "llama-bpe": PreTokenizer(_split(LLAMA3), whole=True, also=("llama3", "llama-v3", "falcon3", "lfm2", "pixtral")),
    "dbrx": PreTokenizer(_split(LLAMA3), also=("smaug-bpe", "chatglm-bpe")),
    "tekken": PreTokenizer(_split(TEKKEN), whole=True, differs=_CASES),
    "gpt-4o": PreTokenizer(_split(GPT4O), differs=_CASES, also=("llama4", "kanana2")),
}
_BY_NAME = {name: way for first, way in KNOWN.items() for name in (first, *way.also)}


def find_name(pre_tokenizer: Mapping[str, Any] | None, *, whole: bool) -> str:
    """Give llama.cpp's name for what a tokenizer.json says.

    Args:
        whole: whether its model ignores merges for parts that are tokens.

    Raises:
        ValueError: llama.cpp has no name for it; says what it is.
    """
    steps = tuple(_steps(pre_tokenizer))
    alike = {way.whole: name for name, way in KNOWN.items() if way.steps == steps}
    if whole in alike:
        return alike[whole]
    if alike:
        raise ValueError(f"its ignore_merges is {str(whole).lower()}, which llama.cpp does not have with its pattern")
    raise ValueError(f"llama.cpp has no name for how it parts a text: {_told(steps)}")


def known(name: str) -> PreTokenizer | None:
    """Look up what one of llama.cpp's names stands for, as far as that is known here."""
    return _BY_NAME.get(name)


def as_json(way: PreTokenizer) -> dict[str, Any]:
    """Spell a way out, as a tokenizer.json does."""
    made = [_spelled(step) for step in way.steps]
    return made[0] if len(made) == 1 else {"type": "Sequence", "pretokenizers": made}


def _spelled(step: Step) -> dict[str, Any]:
    if step == DIGITS:
        return {"type": "Digits", "individual_digits": True}
    if step[0] == "Split":
        return {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": "Isolated", "invert": False}
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": step == WORDS}


def _steps(given: Mapping[str, Any] | None) -> Iterator[Step]:
    """Read steps, in sequences or not; one that is not known keeps the name of its type and what it is given."""
    kind = str((given or {}).get("type"))
    if given is None:
        return
    if kind == "Sequence":
        for each in given.get("pretokenizers") or ():
            yield from _steps(each)
    elif kind == "ByteLevel" and not given.get("add_prefix_space", True):
        yield WORDS if given.get("use_regex", True) else BYTES
    elif kind == "Digits" and given.get("individual_digits"):
        yield DIGITS
    elif kind == "Split" and _isolates(given):
        yield "Split", given["pattern"]["Regex"]
    else:
        yield kind, *(f"{key} {value}" for key, value in given.items() if key != "type")


def _isolates(given: Mapping[str, Any]) -> bool:
    """Tell whether matches become parts of their own; with these patterns all of a text is in matches."""
    way = given.get("behavior"), bool(given.get("invert"))
    return "Regex" in (given.get("pattern") or {}) and way in (("Isolated", False), ("Removed", True))


def _told(steps: tuple[Step, ...]) -> str:
    return ", then ".join(" ".join(step) for step in steps) or "not at all"
