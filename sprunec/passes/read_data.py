"""Read the data once: text and pairs are kept as ids, of a CPM-Live set only where its records lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.errors import InputError
from sprunec.families.cards import card_of
from sprunec.file_digests import MISSING, file_digest
from sprunec.graph.options import Options
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass

if TYPE_CHECKING:
    from sprunec.data.tokenizer import Tokenizer
    from sprunec.families.vocabulary import Vocabulary
    from sprunec.graph.builder import Builder
    from sprunec.plan.plan import DataSource

ROWS_FIT = ("cpm-live", "pairs")  # how long a row may be decides what is read
MARKS, SHORTEST = 2, 2  # a token, and the one that is asked for


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """What is read: files by content, a held-out share or the content of its own files, and what bounds tokens.

    Attributes:
        max_length, room: where how long a row may be decides what is read; the tokens that fit into one follow from it.
        of_model: what else of the model decides what is read.
        block_size, order, packed_prompts, vocab: of a cpm-live set.
    """

    source: str
    tokenizer: str
    held_out: Any
    vocab_size: int
    content: Any = ()
    max_length: int = 0
    room: int = 0
    of_model: Mapping[str, int] = field(default_factory=dict)
    block_size: int | None = None
    order: str = ""
    packed_prompts: str = ""
    vocab: str | None = ""

    def document(self) -> dict[str, Any]:
        found = super().document()
        return {key: value for key, value in found.items() if key not in ("room", "of_model")} | dict(self.of_model)


def add(build: Builder) -> str:
    """Add the node of the plan's data."""
    data, config = build.plan.data, build.config
    assert data is not None
    files = _data_files(data)
    options: dict[str, Any] = {
        "source": data.source,
        "tokenizer": file_digest(data.tokenizer) if isinstance(data.tokenizer, Path) else data.tokenizer,
        "held_out": data.held_out,
        "vocab_size": config.vocab_size,
        "content": _content(data.source, files.get("paths", ())),
        "of_model": card_of(config).data_options(config, data.source),
    }
    if "held_out" in files:
        options["held_out"] = _content(data.source, files["held_out"])
    if data.source in ROWS_FIT:
        options |= {"max_length": data.max_length, "room": data.max_length - config.overhead}
    if data.source == "cpm-live":
        build.data_files = files
        options |= {key: getattr(data, key) for key in ("block_size", "order", "packed_prompts")}
        options["vocab"] = None if data.vocab is None else file_digest(data.vocab)
    return build.add("data", DataOptions(**options), {}, files=files, about=data.source)


def _data_files(data: DataSource) -> dict[str, tuple[Path, ...]]:
    """List the user's files by role; a set's are its meta.bin and what that names."""
    named = {"paths": data.paths, "held_out": (data.held_out,) if isinstance(data.held_out, Path) else ()}
    if data.source == "cpm-live":
        from sprunec.bmcook.data.sets import set_files

        sets = ((role, [set_files(path, data.block_size) for path in paths]) for role, paths in named.items())
        named = {role: tuple(chain.from_iterable(files)) for role, files in sets}
    named["tokenizer"] = (data.tokenizer,) if isinstance(data.tokenizer, Path) else ()
    named["vocab"] = () if data.vocab is None else (data.vocab,)
    return {role: paths for role, paths in named.items() if paths}


def _content(source: str, paths: tuple[Path, ...]) -> Any:
    """Identify a text by its files' digests, or by the interpreter's own documentation's."""
    if source != "python-docs":
        digests = tuple(file_digest(path) for path in paths)
        return MISSING if MISSING in digests else digests
    from pydoc_data import topics

    return file_digest(Path(topics.__file__))


def run(job: Job[DataOptions]) -> dict[str, Any]:
    return READERS.get(job.options.source, _text)(job)


def _text(job: Job[DataOptions]) -> dict[str, Any]:
    from sprunec.data.batches import save_ids
    from sprunec.data.text import read_text, split_text

    options = job.options
    text = read_text(options.source, job.files.get("paths", ()))
    training, rest = split_text(text, _held_out(job), options.source)
    tokenizer = _tokenizer(job, training, 0)
    train_ids, rest_ids = tokenizer.encode(training), tokenizer.encode(rest)
    for name, ids, file in zip(("training", "held-out"), (train_ids, rest_ids), _origins(job), strict=True):
        if ids.size < SHORTEST:
            raise InputError.at(file, f"the {name} part has {ids.size} tokens", "give more text")
    save_ids(job.out, train_ids, rest_ids, tokenizer)
    unknown = float((rest_ids == tokenizer.unknown).mean()) if rest_ids.size else 0.0
    return {
        "training_tokens": int(train_ids.size),
        "held_out_tokens": int(rest_ids.size),
        "vocabulary": tokenizer.size,
        "unknown_share": unknown,
    }


def _pairs(job: Job[DataOptions]) -> dict[str, Any]:
    from sprunec.data.pairs import check_parts, encode_pairs, read_pairs, save_pairs

    pairs, held_out = read_pairs(job.files["paths"]), _held_out(job)
    if isinstance(held_out, Path):
        rest = read_pairs([held_out])
    else:
        cut = len(pairs) - round(len(pairs) * held_out)
        pairs, rest = pairs[:cut], pairs[cut:]
    tokenizer = _tokenizer(job, "".join(word for pair in pairs for word in pair), MARKS)
    train, dropped, shortened = encode_pairs(pairs, tokenizer, job.options.room)
    kept, also_dropped, also_shortened = encode_pairs(rest, tokenizer, job.options.room)
    check_parts(train, kept, _origins(job))
    save_pairs(job.out, train, kept, tokenizer)
    return {
        "pairs": len(train),
        "held_out_pairs": len(kept),
        "dropped": dropped + also_dropped,
        "shortened": shortened + also_shortened,
        "tokens": int(train.tokens.size),
        "vocabulary": tokenizer.size,
    }


def _live(job: Job[DataOptions]) -> dict[str, Any]:
    from sprunec.bmcook.data.read_sets import read_sets
    from sprunec.data.tokenizer import save_tokenizer

    metrics = read_sets(job, _held_out(job))
    if "vocab" in job.files:
        save_tokenizer(job.out, _vocabulary(job, "vocab"))
    return metrics


READERS = {"pairs": _pairs, "cpm-live": _live}


def _held_out(job: Job[DataOptions]) -> float | Path:
    return job.files["held_out"][0] if "held_out" in job.files else job.options.held_out


def _origins(job: Job[DataOptions]) -> tuple[Path, Path]:
    """Say where the training part and the held-out part come from; what no file holds goes by its source."""
    first = job.files.get("paths", (Path(job.options.source),))[0]
    return first, job.files.get("held_out", (first,))[0]


def _tokenizer(job: Job[DataOptions], text: str, marks: int) -> Tokenizer:
    """Read the plan's vocabulary file, or take the characters of a text, and so many marks besides."""
    if "tokenizer" in job.files:
        return _vocabulary(job, "tokenizer")
    from sprunec.data.tokenizer import Characters

    tokenizer = Characters.build(text)
    _check_size(job, _origins(job)[0], tokenizer.size + marks, "the text needs", "other text")
    return tokenizer


def _vocabulary(job: Job[DataOptions], role: str) -> Vocabulary:
    from sprunec.families.vocabulary import read_vocabulary

    (path,) = job.files[role]
    vocabulary = read_vocabulary(path)
    _check_size(job, path, vocabulary.size, "the vocabulary has", "the model's own vocabulary")
    return vocabulary


def _check_size(job: Job[DataOptions], file: Path, tokens: int, what: str, other: str) -> None:
    if tokens > job.options.vocab_size:
        message = f"{what} {tokens} tokens, vocab_size is {job.options.vocab_size}"
        raise InputError.at(file, message, f"raise model.config.vocab_size, or give {other}")


DATA = Pass("data", 1, DataOptions, (), "data")
