"""Read the data once: text and pairs are kept as ids, of a CPM-Live set only where its records lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.data.fast_tokenizer import is_fast
from sprunec.data.text_amounts import BYTES_A_TOKEN, documentation
from sprunec.errors import InputError
from sprunec.families.cards import card_of
from sprunec.file_digests import file_digest
from sprunec.graph.builder import Builder
from sprunec.graph.options import Options
from sprunec.passes.data_files import (
    data_files,
    digests,
    has_documents,
    held_out_tokens,
    tokenizer_digest,
)
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass

if TYPE_CHECKING:
    from sprunec.data.tokenizer import Tokenizer

HeldOut = float | tuple[Path, ...]  # a share at the end, or files of its own
ROWS_FIT = ("cpm-live", "pairs")  # how long a row may be decides what is read
MARKS, SHORTEST = 2, 2  # a token, and the one that is asked for
MOST_SEEN = 0.1  # of the held-out text; licenses and tables come again in any
END_TOKEN, TEXT_COLUMN, APART = "end token", "text", "documents"


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """What is read: files by content, a held-out share or the content of its own files, and what bounds tokens.

    Attributes:
        max_length, room: where how long a row may be decides what is read; the tokens that fit into one follow from it.
        of_model: what else of the model decides what is read.
        column: of tables, and of JSON lines where it is another one than usual.
        between: "end token" where it stands between documents; else that is a newline.
        packing: "documents" where rows are made of whole ones.
        template: what writes a pair out; "": nothing but its own marks. `chat_template` is the content of its file.
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
    packing: str = ""
    template: str = ""
    chat_template: Any = ""
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
    files = data_files(data)
    options: dict[str, Any] = {
        "source": data.source,
        "tokenizer": tokenizer_digest(files["tokenizer"]) if "tokenizer" in files else data.tokenizer,
        "held_out": digests(files["held_out"]) if "held_out" in files else data.held_out,
        "vocab_size": config.vocab_size,
        "content": digests(files.get("paths", ())) if data.source != "python-docs" else file_digest(documentation()),
        "of_model": card_of(config).data_options(config, data.source),
    }
    if data.source in ("parquet", "datasets") or (data.source == "jsonl" and data.column != TEXT_COLUMN):
        options["column"] = data.column
    if has_documents(data) and isinstance(data.tokenizer, Path) and is_fast(data.tokenizer):
        options["between"] = END_TOKEN
    if data.packing == APART:
        # how long a document may be, the model's own positions aside, decides what is written
        options |= {"packing": APART, "of_model": options["of_model"] | {"room": data.max_length - config.overhead}}
    if data.template == "chat":
        options |= {"template": data.template, "chat_template": digests(files.get("chat_template", ()))}
    if data.source in ROWS_FIT or data.packing == APART:
        options |= {"max_length": data.max_length, "room": data.max_length - config.overhead}
    if data.source == "cpm-live":
        build.data_files = files
        options |= {key: getattr(data, key) for key in ("block_size", "order", "packed_prompts")}
        options["vocab"] = tokenizer_digest(files["vocab"]) if "vocab" in files else None
    build.held_out = held_out_tokens(data, files)
    return build.add("data", DataOptions(**options), {}, files=files, about=data.source)


def run(job: Job[DataOptions]) -> dict[str, Any]:
    metrics = READERS.get(job.options.source, _text)(job, job.files.get("held_out") or job.options.held_out)
    return metrics | _overlap(job) if job.options.source not in ROWS_FIT else metrics


def _overlap(job: Job[DataOptions]) -> dict[str, Any]:
    """Warn where held-out text is trained on: its loss then says how well it was learned by heart."""
    from sprunec.data.saved import SavedIds
    from sprunec.data.unseen import RUN, seen_share

    run = RUN if "tokenizer" in job.files else BYTES_A_TOKEN * RUN  # characters
    train, held_out = (SavedIds(job.out / f"{part}.npy") for part in ("train", "held_out"))
    share = seen_share(train, held_out, run)
    if share <= MOST_SEEN:
        return {}
    what = f"{share:.0%} of the held-out text is in the text that is trained on, in runs of {run} tokens"
    return {"notes": [f"{what}: its loss will say too little; hold out other text"]}


def _text(job: Job[DataOptions], held_out: HeldOut) -> dict[str, Any]:
    options = job.options
    if options.between == END_TOKEN or options.packing:
        return _documents(job, held_out)
    from sprunec.data.batches import save_ids
    from sprunec.data.text import read_text, split_text

    source, column = options.source, options.column or TEXT_COLUMN
    training, rest = split_text(read_text(source, job.files.get("paths", ()), column), held_out, source, column)
    tokenizer = _tokenizer(job, "tokenizer", training)
    train_ids, rest_ids = tokenizer.encode(training), tokenizer.encode(rest)
    save_ids(job.out, train_ids, rest_ids, tokenizer)
    unknown = float((rest_ids == tokenizer.unknown).mean()) if rest_ids.size else 0.0
    return _counted(job, (train_ids.size, rest_ids.size), tokenizer) | {"unknown_share": unknown}


def _counted(job: Job[DataOptions], sizes: Sequence[int], tokenizer: Tokenizer) -> dict[str, Any]:
    """Say how many tokens both parts have; raises InputError where one has too few."""
    for name, size, file in zip(("training", "held-out"), sizes, _origins(job), strict=True):
        if size < SHORTEST:
            raise InputError.at(file, f"the {name} part has {size} tokens", "give more text")
    return {"training_tokens": sizes[0], "held_out_tokens": sizes[1], "vocabulary": tokenizer.size}


def _documents(job: Job[DataOptions], held_out: HeldOut) -> dict[str, Any]:
    """Encode documents while they are read, which may be twice, and never more than a few in memory."""
    from sprunec.data.encoding import write_apart, write_joined
    from sprunec.data.fast_tokenizer import FastTokenizer
    from sprunec.data.packing import check_rows
    from sprunec.data.text import split_documents
    from sprunec.data.tokenizer import save_tokenizer

    options, tokenizer = job.options, _tokenizer(job, "tokenizer")
    assert isinstance(tokenizer, FastTokenizer)
    documents = split_documents(options.source, job.files["paths"], held_out, options.column or TEXT_COLUMN)
    save_tokenizer(job.out, tokenizer)
    if not options.packing:
        sizes = write_joined(job.out, documents, tokenizer)
        return _counted(job, sizes, tokenizer) | {"unknown_share": 0.0}
    found = write_apart(job.out, documents, tokenizer, options.room, options.max_length)
    for name, (_, rows, _), file in zip(("training", "held-out"), found, _origins(job), strict=True):
        check_rows(rows, name, file)
    counted = _counted(job, [size for size, _, _ in found], tokenizer)
    return counted | {"rows": len(found[0][1]), "padding": found[0][2]}


def _pairs(job: Job[DataOptions], held_out: HeldOut) -> dict[str, Any]:
    from sprunec.data.pair_files import write_pairs

    options, own = job.options, "tokenizer" in job.files
    template = job.files["tokenizer"][0] if options.template else None
    return write_pairs(
        job.out,
        (job.files["paths"], held_out, _origins(job)),
        lambda letters: _tokenizer(job, "tokenizer", letters, MARKS),
        letters=not own,
        template=template,
        room=options.room,
        width=options.max_length,
        packs=bool(options.packing),
    )


def _live(job: Job[DataOptions], held_out: HeldOut) -> dict[str, Any]:
    from sprunec.bmcook.data.read_sets import read_sets
    from sprunec.data.tokenizer import save_tokenizer

    metrics = read_sets(job, held_out if isinstance(held_out, float) else held_out[0])
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
    read: Callable[[Path], Tokenizer] = read_fast_tokenizer if is_fast(file) else read_vocabulary
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
