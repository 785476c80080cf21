"""Tokenizers as GGUF's metadata: what comes back finds the same ids, and what llama.cpp cannot be told is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from sprunec.errors import FormatError, InputError
from sprunec.families.gguf.token_table import Kind
from sprunec.families.gguf.tokenizer_files import tokenizer_files
from sprunec.families.gguf.tokenizers import tokenizer_metadata
from tests.helpers.trained_tokenizers import MAKERS, TEMPLATE, random_texts, write_tokenizer, write_vocabulary

ROWS = 1800  # more than any of the tokenizers has tokens
SPACED = "a text that begins with a space"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("tokenizers"), dict[str, Path]()

    def give(way: str) -> Path:
        if way not in made:
            made[way] = write_tokenizer(folder / way, way)
        return made[way]

    return give


def metadata(directory: Path, rows: int = ROWS) -> dict[str, Any]:
    return {field.key: field.value for field in tokenizer_metadata(directory, rows).fields}


def edited(first: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    document = json.loads((first / "tokenizer.json").read_text())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def scatter(merges: list[list[str]]) -> None:
    """Put one of several merges to a piece in front of all others."""
    made = ["".join(pair) for pair in merges]
    at = next(place for place in range(1, len(made)) if made[place] == made[place - 1])
    merges.insert(0, merges.pop(at))


@pytest.mark.parametrize("way", MAKERS)
def test_what_comes_back_finds_the_same_ids(directory: Callable[[str], Path], way: str) -> None:
    first = directory(way)
    own = Tokenizer.from_file(str(first / "tokenizer.json"))
    found = Tokenizer.from_str(tokenizer_files(metadata(first))["tokenizer.json"])
    spaced = any(SPACED in note for note in tokenizer_metadata(first, ROWS).notes)
    for text in random_texts(1000):
        if not (spaced and text.startswith((" ", "\u2581"))):
            assert found.encode(text).ids == own.encode(text).ids, text


@pytest.mark.parametrize(
    ("way", "name", "model"),
    [
        ("gpt2", "gpt-2", "gpt2"),
        ("smollm", "smollm", "gpt2"),
        ("qwen2", "qwen2", "gpt2"),
        ("llama3", "llama-bpe", "gpt2"),
        ("gemma", "default", "llama"),
        ("t5", "default", "t5"),
    ],
)
def test_the_way_to_part_a_text_is_known_by_what_it_does(
    directory: Callable[[str], Path], way: str, name: str, model: str
) -> None:
    found = metadata(directory(way))
    assert found["tokenizer.ggml.pre"] == name
    assert found["tokenizer.ggml.model"] == model


def test_rows_without_a_token_are_unused(directory: Callable[[str], Path]) -> None:
    found = metadata(directory("gpt2"))
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == ROWS
    assert tokens[-1] == f"[PAD{ROWS - 1}]" and kinds[-1] == Kind.UNUSED
    assert kinds[tokens.index("<|endoftext|>")] == Kind.CONTROL
    assert kinds[tokens.index("def  ")] == Kind.USER_DEFINED


@pytest.mark.parametrize("way", ["llama3", "llama2", "t5"])
def test_a_files_own_keys_stay(directory: Callable[[str], Path], tmp_path: Path, way: str) -> None:
    written = tokenizer_metadata(directory(way), ROWS).fields
    found = tokenizer_metadata(write_vocabulary(tmp_path / "x.gguf", written), ROWS).fields
    assert {field.key: field[2:] for field in found} == {field.key: field[2:] for field in written}
    same = {field.key: field.value for field in found if field.of != "FLOAT32"}
    assert same == {field.key: field.value for field in written if field.of != "FLOAT32"}


def test_special_ids_frames_and_templates_are_the_directorys(directory: Callable[[str], Path]) -> None:
    found, other = metadata(directory("llama2")), metadata(directory("t5"))
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert found["tokenizer.ggml.unknown_token_id"] == 0
    assert found["tokenizer.ggml.add_bos_token"] is True and found["tokenizer.ggml.add_eos_token"] is False
    assert other["tokenizer.ggml.add_bos_token"] is False and other["tokenizer.ggml.add_eos_token"] is True
    assert metadata(directory("llama3"))["tokenizer.ggml.eot_token_id"] == 2  # <|im_end|>
    assert found["tokenizer.chat_template"] == TEMPLATE


def test_settings_win_over_the_template_of_the_file(directory: Callable[[str], Path], tmp_path: Path) -> None:
    first = directory("llama2")
    config = json.loads((first / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    (tmp_path / "tokenizer.json").write_bytes((first / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}")
    found = metadata(tmp_path)
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == "{{ 1 }}"


def test_transformers_opens_what_comes_back(directory: Callable[[str], Path], tmp_path: Path) -> None:
    for name, text in tokenizer_files(metadata(directory("llama2"))).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    own, found = AutoTokenizer.from_pretrained(directory("llama2")), AutoTokenizer.from_pretrained(tmp_path)
    text = "The try statement\n  names handlers. Привет 😀"
    assert found(text).input_ids == own(text).input_ids
    assert found.decode(found(text).input_ids, skip_special_tokens=True) == text
    assert (found.bos_token, found.eos_token) == ("<s>", "</s>")
    assert found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_what_llama_cpp_does_otherwise_is_said(directory: Callable[[str], Path], tmp_path: Path) -> None:
    assert not tokenizer_metadata(directory("gpt2"), ROWS).notes
    assert not tokenizer_metadata(directory("llama2"), ROWS).notes
    assert "NFC" in tokenizer_metadata(directory("qwen2"), ROWS).notes[0]
    assert any(SPACED in note for note in tokenizer_metadata(directory("mistral"), ROWS).notes)
    parted = edited(directory("t5"), tmp_path, lambda it: it["pre_tokenizer"].update(split=True))
    assert any("worth the same" in note for note in tokenizer_metadata(parted, ROWS).notes)


@pytest.mark.parametrize(
    ("way", "change", "why"),
    [
        ("gpt2", lambda it: it["pre_tokenizer"].update(add_prefix_space=True), "no name for how it parts a text"),
        ("gpt2", lambda it: it["model"].update(ignore_merges=True), "ignore_merges is true"),
        ("gpt2", lambda it: it["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix '</w>'"),
        ("gpt2", lambda it: it.update(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
        ("gpt2", lambda it: it["model"].update(type="WordPiece"), "it is WordPiece"),
        ("qwen2", lambda it: it["pre_tokenizer"]["pretokenizers"][0].update(invert=True), "no name"),
        ("llama2", lambda it: it["model"]["merges"].pop(), "not those of pieces"),
        ("llama2", lambda it: scatter(it["model"]["merges"]), "do not stand together"),
        ("llama2", lambda it: it["model"]["vocab"].pop("<0x07>"), "no piece <0x07>"),
        ("llama2", lambda it: it["model"].update(byte_fallback=False), "byte_fallback"),
        ("llama2", lambda it: it["normalizer"]["normalizers"].append({"type": "NFKC"}), "normalizer NFKC"),
        ("t5", lambda it: it["model"].update(byte_fallback=True), "spells in bytes"),
        ("t5", lambda it: it["model"].update(unk_id=None), "no token for what no piece has"),
        ("gpt2", lambda it: it["model"]["vocab"].update({"far": ROWS}), "the id 1800, and the model has 1,800 rows"),
        ("gpt2", lambda it: it["model"]["vocab"].update({"[PAD1700]": 1600}), "its ids 1600 and 1700 are both"),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_refused(
    directory: Callable[[str], Path], tmp_path: Path, way: str, change: Callable[[dict[str, Any]], Any], why: str
) -> None:
    with pytest.raises(FormatError, match="cannot hold this model's tokenizer") as told:
        tokenizer_metadata(edited(directory(way), tmp_path, change), ROWS)
    assert why in str(told.value)


def test_a_directory_without_a_tokenizer_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no tokenizer\.json"):
        tokenizer_metadata(tmp_path, ROWS)
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(InputError, match="is no tokenizer"):
        tokenizer_metadata(tmp_path, ROWS)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert', which is not known"),
        ({"tokenizer.ggml.model": ""}, "no tokenizer"),
        ({"tokenizer.ggml.pre": "of-tomorrow"}, "'of-tomorrow', is not known"),
        ({"tokenizer.ggml.merges": ["a b c", "x y"]}, "other tokens than it has"),
        ({"tokenizer.ggml.token_type": [1]}, "one text and one kind"),
        ({"tokenizer.ggml.tokens": 7}, "another kind"),
        ({"tokenizer.ggml.model": "llama"}, "no score for each token"),
        ({"tokenizer.ggml.model": "t5", "tokenizer.ggml.scores": ["x"]}, "another kind"),
    ],
)
def test_metadata_that_is_no_tokenizer_is_told(
    directory: Callable[[str], Path], change: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        tokenizer_files(metadata(directory("gpt2")) | change)
