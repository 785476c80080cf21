"""Characters to ids and back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sprunec.data.tokenizer import UNKNOWN_ID, Characters, read_tokenizer, save_tokenizer


def test_ids_go_by_code_point_after_the_special_ones() -> None:
    tokenizer = Characters.build("banana é 漢 😀")
    assert tokenizer.vocabulary == ("<pad>", "<unk>", " ", "a", "b", "n", "é", "漢", "😀")
    assert tokenizer.encode("an 😀").tolist() == [3, 5, 2, 8]
    assert tokenizer.encode("an").dtype == np.int32


def test_what_it_was_not_built_from_is_unknown() -> None:
    tokenizer = Characters.build("bd")
    assert tokenizer.encode("abcde").tolist() == [UNKNOWN_ID, 2, UNKNOWN_ID, 3, UNKNOWN_ID]
    assert tokenizer.decode([2, 1, 0, 3, 99]) == "b\ufffd\ufffdd\ufffd"


def test_an_empty_vocabulary_knows_nothing() -> None:
    assert Characters.build("").encode("ab").tolist() == [UNKNOWN_ID, UNKNOWN_ID]
    assert Characters.build("ab").encode("").tolist() == []


@given(st.text(alphabet=st.characters(), max_size=60), st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_known_text_comes_back_whatever_the_characters(text: str, other: str) -> None:
    tokenizer = Characters.build(text)
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    wanted = [tokenizer.vocabulary.index(c) if c in set(text) else UNKNOWN_ID for c in other]
    assert tokenizer.encode(other).tolist() == wanted


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=30))
@settings(max_examples=50, deadline=None)
def test_json_reads_back(text: str) -> None:
    tokenizer = Characters.build(text)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder), tokenizer)
        assert read_tokenizer(Path(folder)) == tokenizer
