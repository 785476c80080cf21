"""Read the data once: text and pairs are kept as ids, of a CPM-Live set only where its records lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.errors import InputError
from sprunec.families.cards import card_of
from sprunec.file_digests import MISSING, file_digest
from sprunec.graph.builder import Builder
from sprunec.graph.options import Options
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass
from sprunec.plan.plan import DataSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sprunec.data.tokenizer import Tokenizer

    Ids = NDArray[np.int32]

ROWS_FIT = ("cpm-live", "pairs")  # how long a row may be decides what is read
MARKS, SHORTEST = 2, 2  # a token, and the one that is asked for
END_TOKEN = "end token"
BYTES_A_TOKEN = 4  # of English text, about, in a vocabulary of words and parts of words


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """What is read: files by content, a held-out share or the content of its own files, and what bounds tokens.

    Attributes:
        max_length, room: where how long a row may be decides what is read; the tokens that fit into one follow from it.
        of_model: what else of the model decides what is read.
        column: of Parquet tables.
        between: "end token" where it stands between documents; else that is a newline.
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
    column: str = ""
    between: str = ""
    block_size: int | None = None
    order: str = ""
    packed_prompts: str = ""
    vocab: Any = ""

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
        "tokenizer": _tokenizer_digest(files["tokenizer"]) if "tokenizer" in files else data.tokenizer,
        "held_out": _digests(files["held_out"]) if "held_out" in files else data.held_out,
        "vocab_size": config.vocab_size,
        "content": _digests(files.get("paths", ())) if data.source != "python-docs" else _documentation(),
        "of_model": card_of(config).data_options(config, data.source),
    }
    if data.source == "parquet":
        options["column"] = data.column
    if _has_documents(data) and isinstance(data.tokenizer, Path) and data.tokenizer.suffix == ".json":
        options["between"] = END_TOKEN
    if data.source in ROWS_FIT:
        options |= {"max_length": data.max_length, "room": data.max_length - config.overhead}
    if data.source == "cpm-live":
        build.data_files = files
        options |= {key: getattr(data, key) for key in ("block_size", "order", "packed_prompts")}
        options["vocab"] = _tokenizer_digest(files["vocab"]) if "vocab" in files else None
    build.held_out = held_out_tokens(data, files)
    return build.add("data", DataOptions(**options), {}, files=files, about=data.source)


def held_out_tokens(data: DataSource, files: Mapping[str, tuple[Path, ...]]) -> int:
    """Guess the tokens that are held out, by the sizes of files that are there."""
    own, each = files.get("held_out", ()), 1 if data.tokenizer == "characters" else BYTES_A_TOKEN
    paths = own or files.get("paths", ()) or (documentation(),)
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return round(size * (1.0 if isinstance(data.held_out, Path) else data.held_out) / each)


def _has_documents(data: DataSource) -> bool:
    """Tell whether a text may have several documents."""
    return data.source in ("jsonl", "parquet") or (data.source == "text" and len(data.paths) > 1)


def _data_files(data: DataSource) -> dict[str, tuple[Path, ...]]:
    """List the user's files by role; a set's are its meta.bin and what that names."""
    named = {"paths": data.paths, "held_out": (data.held_out,), "tokenizer": (data.tokenizer,), "vocab": (data.vocab,)}
    found = {role: tuple(p for p in paths if isinstance(p, Path)) for role, paths in named.items()}
    if found["tokenizer"] or found["vocab"]:
        from sprunec.data.fast_tokenizer import tokenizer_files

        for role in ("tokenizer", "vocab"):
            found[role] = tuple(chain.from_iterable(map(tokenizer_files, found[role])))
    if data.source == "cpm-live":
        from sprunec.bmcook.data.sets import set_files

        for role in ("paths", "held_out"):
            found[role] = tuple(chain.from_iterable(set_files(path, data.block_size) for path in found[role]))
    return {role: paths for role, paths in found.items() if paths}


def _digests(paths: tuple[Path, ...]) -> Any:
    """Identify a text by its files' content."""
    digests = tuple(file_digest(path) for path in paths)
    return MISSING if MISSING in digests else digests


def _tokenizer_digest(paths: tuple[Path, ...]) -> Any:
    """Identify a tokenizer by its file, and by its settings where they stand in another."""
    return file_digest(paths[0]) if len(paths) == 1 else _digests(paths)


def _documentation() -> Any:
    """Identify the interpreter's own documentation."""
    return file_digest(documentation())


def documentation() -> Path:
    """Say where the interpreter's own documentation is."""
    from pydoc_data import topics

    return Path(topics.__file__)


def run(job: Job[DataOptions]) -> dict[str, Any]:
    held_out = job.files["held_out"][0] if "held_out" in job.files else job.options.held_out
    return READERS.get(job.options.source, _text)(job, held_out)


def _text(job: Job[DataOptions], held_out: float | Path) -> dict[str, Any]:
    from sprunec.data.batches import save_ids
    from sprunec.data.text import read_text, split_text

    source, column = job.options.source, job.options.column
    if job.options.between == END_TOKEN:
        tokenizer, train_ids, rest_ids = _documents(job, held_out)
    else:
        training, rest = split_text(read_text(source, job.files.get("paths", ()), column), held_out, source, column)
        tokenizer = _tokenizer(job, "tokenizer", training)
        train_ids, rest_ids = tokenizer.encode(training), tokenizer.encode(rest)
    for name, ids, file in zip(("training", "held-out"), (train_ids, rest_ids), _origins(job), strict=True):
        if ids.size < SHORTEST:
            raise InputError.at(file, f"the {name} part has {ids.size} tokens", "give more text")
    save_ids(job.out, train_ids, rest_ids, tokenizer)
    return {
        "training_tokens": int(train_ids.size),
        "held_out_tokens": int(rest_ids.size),
        "vocabulary": tokenizer.size,
        "unknown_share": float((rest_ids == tokenizer.unknown).mean()),
    }


def _documents(job: Job[DataOptions], held_out: float | Path) -> tuple[Tokenizer, Ids, Ids]:
    """Encode documents while they are read, both parts; more often than once, but never all in memory."""
    from sprunec.data.fast_tokenizer import FastTokenizer
    from sprunec.data.text import held_out_source, part_of, read_documents

    source, paths, column = job.options.source, job.files["paths"], job.options.column
    tokenizer, cut = _tokenizer(job, "tokenizer"), None
    assert isinstance(tokenizer, FastTokenizer)
    if not isinstance(held_out, Path):
        size = sum(map(len, read_documents(source, paths, column)))
        cut = size - round(size * held_out)
    training = part_of(read_documents(source, paths, column), 0, cut)
    if isinstance(held_out, Path):
        rest = part_of(read_documents(held_out_source(source), [held_out], column), 0)
    else:
        rest = part_of(read_documents(source, paths, column), cut or 0)
    return tokenizer, tokenizer.encode_documents(training), tokenizer.encode_documents(rest)


def _pairs(job: Job[DataOptions], held_out: float | Path) -> dict[str, Any]:
    from sprunec.data.pairs import check_parts, encode_pairs, read_pairs, save_pairs

    pairs = read_pairs(job.files["paths"])
    if isinstance(held_out, Path):
        rest = read_pairs([held_out])
    else:
        cut = len(pairs) - round(len(pairs) * held_out)
        pairs, rest = pairs[:cut], pairs[cut:]
    tokenizer = _tokenizer(job, "tokenizer", "".join(chain.from_iterable(pairs)), MARKS)
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


def _live(job: Job[DataOptions], held_out: float | Path) -> dict[str, Any]:
    from sprunec.bmcook.data.read_sets import read_sets
    from sprunec.data.tokenizer import save_tokenizer

    metrics = read_sets(job, held_out)
    if "vocab" in job.files:
        save_tokenizer(job.out, _tokenizer(job, "vocab"))
    return metrics


READERS = {"pairs": _pairs, "cpm-live": _live}


def _origins(job: Job[DataOptions]) -> tuple[Path, Path]:
    """Say where the training part and the held-out part come from; what no file holds goes by its source."""
    first = job.files.get("paths", (Path(job.options.source),))[0]
    return first, job.files.get("held_out", (first,))[0]


def _tokenizer(job: Job[DataOptions], role: str, text: str = "", marks: int = 0) -> Tokenizer:
    """Read a file of the plan, or take the characters of a text, and so many marks besides."""
    from sprunec.data.fast_tokenizer import read_fast_tokenizer
    from sprunec.data.tokenizer import Characters
    from sprunec.families.vocabulary import read_vocabulary

    file = job.files.get(role, _origins(job))[0]
    read: Callable[[Path], Tokenizer] = read_fast_tokenizer if file.suffix == ".json" else read_vocabulary
    tokenizer = read(file) if role in job.files else Characters.build(text)
    what, other = "the vocabulary has", "the model's own vocabulary"
    size = tokenizer.size
    if role not in job.files:
        what, other, size = "the text needs", "other text", size + marks
    if size > job.options.vocab_size:
        message = f"{what} {size} tokens, vocab_size is {job.options.vocab_size}"
        raise InputError.at(file, message, f"raise model.config.vocab_size, or give {other}")
    return tokenizer


DATA = Pass("data", 1, DataOptions, (), "data")
