"""What a run needs of the machine, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sprunec.compiler.speeds import GIVEN
from sprunec.errors import series
from sprunec.show.console import duration
from sprunec.show.numbers import UNKNOWN, byte_words, is_finite, powered

PARTS = {
    "blocks": "blocks",
    "model": "the model",
    "training": "gradients and moments",
    "weights": "weights",
    "masks": "masks",
    "states": "hidden states",
    "activations": "activations",
    "reopened": "the directory, opened again",
    "moments": "second moments",
    "libraries": "torch and other libraries",
}

WORTH_TELLING = 1e9  # bytes that must be in memory as a whole: with less, nobody needs another way


def needs_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Say what the most memory is for, what is on the disk meanwhile, which passes do not go block by block."""
    needs = document["needs"]
    of = [f"{PARTS[name]} {byte_words(size)}" for name, size in needs["memory_of"].items()]
    yield f"at most {_told(needs.get('memory'))} of memory: {', '.join(of)}"
    scratch = f", and {byte_words(needs['scratch'])} more for a while" if needs.get("scratch") else ""
    yield f"{_told(needs.get('disk'))} on the disk{scratch}; {_told(needs.get('read'))} read"
    yield from _in_one_piece(node for node in document["nodes"] if not node["cached"])
    if unknown := [node["name"] for node in document["nodes"] if node["needs"].get("operations", 0) is None]:
        yield f"how many operations {series(unknown, 'and')} will take is not known before: they are in no sum"
    if measured := document.get("measured"):
        took, given = duration(needs.get("seconds")), measured["device"] == GIVEN
        by = "as given" if given else f"by what was measured on {measured['device']}"
        yield f"about {took}, {by}: {_speeds(measured)}"


def _in_one_piece(nodes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Say what must be in memory as a whole, together of which passes, the most of it and what else can be done."""
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for node in nodes:
        if whole := node["needs"].get("in_one_piece"):
            alike.setdefault((whole["what"], whole["remedy"]), []).append(node)
    for (what, remedy), each in alike.items():
        sizes = [node["needs"]["in_one_piece"].get("bytes") for node in each]
        most = max(sizes) if all(map(is_finite, sizes)) else None
        if most is not None and most < WORTH_TELLING:
            continue
        names, verb = series([node["name"] for node in each], "and"), "need" if len(each) > 1 else "needs"
        yield f"{names} {verb} {what}, {_told(most)}; {remedy}"


def _told(size: Any) -> str:
    return byte_words(size) if is_finite(size) else UNKNOWN


def _speeds(measured: Mapping[str, Any]) -> str:
    """Say how fast a block is, and the disk."""
    kinds = ("float32", "float64", "training")
    rates = [f"{powered(measured.get(kind))} operations a second in {kind}" for kind in kinds]
    reading = measured.get("read")
    return ", ".join(
        [*rates, f"{byte_words(reading)} a second read" if is_finite(reading) else "reading was not measured"]
    )
