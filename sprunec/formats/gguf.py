"""The format `gguf`: one file for llama.cpp and what is built on it, with its tokenizer and what its graph asks for.

It is opened again by the package's own reader, number by number, and by llama.cpp where that is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.gguf_file import is_gguf
from sprunec.errors import FormatError, InputError
from sprunec.families.base import family_of
from sprunec.families.base_config import ModelConfig
from sprunec.families.gguf.architecture import Architecture
from sprunec.families.gguf.graph_fit import INSTEAD, added, context_length, obstacles, row_of, rows_of, windows
from sprunec.families.gguf.metadata import fields
from sprunec.families.gguf.tokenizers import Field, TokenizerFields, tokenizer_metadata
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.formats.huggingface import PLACE, PROCESS_BYTES, opened_apart
from sprunec.plan.export_formats import Continued, Emission, Format, Opening, Options, Reopened
from sprunec.units import INSIDE, SUBLAYERS

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.checkpoint.reader import Tensors
    from sprunec.families.base import Inputs
    from sprunec.plan.plan import Plan

FILE, KEEP = "model.gguf", "keep"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
GENERATION = "generation_config.json"  # what it says of ids
STEPS = 32  # tokens that it goes on with
KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}  # what each dtype is kept in
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # the package's `LlamaFileType`
QUANTIZATION = 2  # the version of how blocks are laid out
WIDTHS = {"q8_0": 32}  # of rows that are packed; K-quants pack 256
K_QUANTS = 256
RUNTIME, SCRIPT = "llama_cpp", "sprunec.families.gguf.llama_cpp_reader"


def options(plan: Plan) -> Options:
    """Find the tokenizer.

    Raises:
        InputError: llama.cpp has no such one.
    """
    directory = plan.model.checkpoint
    there = [path for name in TOKENIZER if directory is not None and (path := directory / name).is_file()]
    files = tuple(path for path in (*there, *(path.with_name(GENERATION) for path in there[:1])) if path.is_file())
    if directory is not None and is_gguf(directory):
        files = (directory,)  # which has its own
    if files:
        try:
            tokenizer_metadata(_place_of(files), plan.model.config.vocab_size)
        except FormatError as error:
            raise InputError.at(files[0], str(error), INSTEAD) from error
    return {}, {"vocabulary": files}


def _place_of(vocabulary: tuple[Path, ...]) -> Path:
    return vocabulary[0] if is_gguf(vocabulary[0]) else vocabulary[0].parent


def write(emission: Emission, directory: Path) -> dict[str, Any]:
    """Raise FormatError where no graph can be what was cut, or a number is beyond the type."""
    from sprunec.checkpoint.gguf_writer import write_gguf
    from sprunec.families.gguf.written_tensors import file_tensors
    from sprunec.families.model_directory import open_model_tensors

    config, state = emission.config, open_model_tensors(emission.model)
    if problems := [why for _, why, _ in obstacles(config)]:
        raise FormatError(f"the format gguf cannot hold this model: {'; '.join(problems)}")
    assert isinstance(config, TransformersConfig)
    row, kind = row_of(config), kind_of(emission.options.get("gguf", {}), stored_dtype(state))
    assert row is not None
    tensors = file_tensors(config, row, state, kind)
    vocabulary = _vocabulary(config, emission)
    directory.mkdir()
    about = [*_general(config, kind), *fields(config, row), *vocabulary.fields]
    write_gguf(directory / FILE, row.name, about, tensors)
    loose = [name for name, tensor in tensors.items() if len(tensor.shape) > 1 and tensor.kind not in (kind, "f32")]
    return {
        "dtype": kind,
        "architecture": row.name,
        "why": [*added(config, row), *_remarks(config, kind, loose), *vocabulary.notes],
    }


def kind_of(options: Mapping[str, Any], stored: str) -> str:
    """Say what matrices are stored in: what is asked for, or what they have."""
    kind: str = options.get("type", KEEP)
    return KINDS.get(stored, "f32") if kind == KEEP else kind


def stored_dtype(state: Tensors) -> str:
    return str(state.dtype(next(iter(state)))).removeprefix("torch.")


def _general(config: TransformersConfig, kind: str) -> Iterator[Field]:
    """Say what a file is, whatever graph it is for."""
    from gguf import size_label

    count, whole = config.parameters(), config.layers == config.uncut.layers
    name = Path(config.document.get("_name_or_path") or config.layout.title).name
    yield Field("general.type", "model", "STRING")
    yield Field("general.name", name if whole else f"{name}, pruned", "STRING")
    yield Field("general.size_label", size_label(count, count, 0, 0), "STRING")
    yield Field("general.file_type", FILE_TYPES[kind], "UINT32")
    yield Field("general.quantization_version", QUANTIZATION, "UINT32")


def _vocabulary(config: TransformersConfig, emission: Emission) -> TokenizerFields:
    """Describe the tokenizer of the plan's input model; one that has none takes ids alone."""
    if files := emission.files.get("vocabulary"):
        return tokenizer_metadata(_place_of(files), config.vocab_size)
    return TokenizerFields((Field("tokenizer.ggml.model", "none", "STRING"),), ("there is no tokenizer",))


def _remarks(config: TransformersConfig, kind: str, loose: list[str]) -> Iterator[str]:
    row = row_of(config)
    assert row is not None
    length = context_length(config, row)
    if not row.pattern and length in windows(config, row):
        yield f"the context is {length} tokens, as far as one sees: llama.cpp has no window in such a model"
    if loose:
        yield f"{len(loose)} matrices are in 16 bits, since their rows are no multiples of {WIDTHS[kind]}: {loose[0]}"


def reopen(directory: Path, config: ModelConfig, weights: Tensors) -> Reopened:
    """Compare the file's numbers, then open it with llama.cpp, or where that is not installed by its numbers alone."""
    import torch
    from gguf import GGUFReader

    from sprunec.checkpoint.reader import open_tensors
    from sprunec.families.gguf.file_values import check_file
    from sprunec.families.gguf.model_tensors import ModelTensors
    from sprunec.families.gguf.written_tensors import file_tensors, placed
    from sprunec.models.meta_models import empty_model
    from sprunec.models.streamed import Streamed

    assert isinstance(config, TransformersConfig)
    row, file, family = row_of(config), directory / FILE, family_of(config)
    assert row is not None
    said = GGUFReader(file).fields["general.file_type"].contents()
    kind = next(kind for kind, number in FILE_TYPES.items() if number == said)
    check_file(file, [*_general(config, kind), *fields(config, row)], file_tensors(config, row, weights, kind))
    there = {name: origin for name, origin in placed(config, row).items() if name in weights}
    stored = ModelTensors(open_tensors(file), there)
    continued, longest = list[Continued](), context_length(config, row)

    def by_runtime(inputs: list[Inputs]) -> Tensor:
        rows = [batch["input"][0] for batch in inputs]
        steps = 0 if continued or longest < 2 * STEPS else STEPS
        found = opened_apart("gguf", SCRIPT, file, rows, str(steps), library="llama.cpp")
        if steps:
            ids = torch.tensor([*found["before"], *found["ids"]])
            whole = {"input": ids[None], "length": torch.tensor([len(ids)])}
            continued.append(Continued(whole, len(found["before"]), found["pieces"]))
        return torch.cat(found["logits"])

    def by_numbers(inputs: list[Inputs]) -> Tensor:
        model = Streamed(family, empty_model(config), stored, inputs, torch.float32, torch.device("cpu"))
        return torch.cat([part for _, part in model.logits()], dim=1)

    def texts(batch: Inputs) -> list[Inputs]:
        """Take each row for itself, as far as the graph computes the model."""
        rows = (text["input"][:, :longest] for text in family.huggingface_texts(config, {}, batch))
        return [{"input": ids, "length": torch.tensor([ids.size(1)])} for ids in rows]

    runs = find_spec(RUNTIME) is not None
    runtime, logits = ("llama.cpp", by_runtime) if runs else ("", by_numbers)
    arithmetic = getattr(torch, arithmetic_of(row, kind)) if runs else torch.float32
    return Reopened(kind, arithmetic, logits, texts, weights=stored, continued=continued, runtime=runtime)


def arithmetic_of(row: Architecture, kind: str) -> str:
    """Say what llama.cpp's products are as coarse as: states are rounded to the matrices' type, gelu to float16."""
    if kind in ("f16", "bf16"):
        return next(dtype for dtype, stored in KINDS.items() if stored == kind)
    return "float32" if row.activation[1] == "silu" else "float16"


def opening(directory: Path, about: Mapping[str, Any]) -> Opening:
    """Say how llama.cpp is given the file."""
    code = "from llama_cpp import Llama", "", f'model = Llama("{PLACE}/{FILE}")'
    remark = (
        f"Or `llama-cli -m {FILE}`; its architecture is `{about['architecture']}`, its matrices are {about['dtype']}."
    )
    return Opening("gguf", code, " ".join([remark, *(f"In it {each}." for each in about["why"])]))


def alike(config: ModelConfig) -> tuple[str, ...]:
    """Give what layers must have as many of; nothing where a graph reads sizes by layer."""
    rows = rows_of(config) if isinstance(config, TransformersConfig) else []
    return (*INSIDE, *SUBLAYERS) if rows and not any(row.by_layer for row in rows) else ()


def fixed(config: ModelConfig) -> Mapping[str, str]:
    """Give what cannot be cut: heads, where a graph has them as wide together as the model."""
    rows = rows_of(config) if isinstance(config, TransformersConfig) else []
    if not rows or any(row.free_heads for row in rows):
        return {}
    why = f"the format gguf can't hold other heads: those of {rows[0].name} are together as wide as the model"
    return dict.fromkeys(("head", "kv_group", "dim_head"), why)


def multiples(config: ModelConfig, options: Mapping[str, Any]) -> Mapping[str, tuple[int, str]]:
    """Say which feed-forward widths quantizations can pack, where the model has such ones."""
    kind = options.get("type", KEEP)
    multiple = WIDTHS.get(kind, K_QUANTS)
    lost = f"{kind} packs so many, and matrices that do not part into them stay in 16 bits"
    if kind not in WIDTHS:
        lost = "K-quants, which llama.cpp makes of the file, pack so many, and take more bits for other widths"
    parts = all(layer.counts.get("dim_ff", 0) % multiple == 0 for layer in config.layers)
    return {"dim_ff": (multiple, lost)} if parts else {}


def opens(config: ModelConfig) -> float:
    """Count what llama.cpp takes, in a process of its own: the file is mapped, and its numbers are read once."""
    return PROCESS_BYTES + 4 * config.parameters()


GGUF = Format(
    "gguf", write, reopen, package=("gguf", "sprunec[gguf]"), alike=alike, fixed=fixed, multiples=multiples,
    obstacles=obstacles, instead=INSTEAD, opens=opens, opening=opening, options=options,
)  # fmt: skip
