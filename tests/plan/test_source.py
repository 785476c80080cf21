"""JSON with places: the value is the standard parser's, and everything has a line and a column."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprunec.errors import InputError, show
from sprunec.plan.source import parse_source

DOCUMENT = '{\n  "a": [1,\n    {"b/c": "\\u00e9"}],\n  "é": -2.5e1\n}\n'

numbers = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_places_of_values_and_keys() -> None:
    source = parse_source(DOCUMENT, "x.json")
    assert source.value == {"a": [1, {"b/c": "é"}], "é": -25.0}
    assert source.places == {
        "": (1, 1),
        "/a": (2, 8),
        "/a/0": (2, 9),
        "/a/1": (3, 5),
        "/a/1/b~1c": (3, 13),
        "/é": (4, 8),
    }
    assert source.keys == {"/a": (2, 3), "/a/1/b~1c": (3, 6), "/é": (4, 3)}


def test_place_of_what_is_not_written_is_its_parents() -> None:
    source = parse_source(DOCUMENT, "x.json")
    assert source.place("/a/1/none/deeper") == (3, 5)
    assert source.place("/a/1/b~1c", key=True) == (3, 6)


@given(values, st.sampled_from([None, 2]), st.booleans())
def test_value_is_the_standard_parsers(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse_source(text, "x.json").value == json.loads(text)


@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \n\\/', max_size=40))
def test_any_text_is_read_or_refused_like_the_standard_parser(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(InputError):
            parse_source(text, "x.json")
        return
    codes, source = [], None
    try:
        source = parse_source(text, "x.json")
    except InputError as error:
        codes = [finding.code for finding in error.diagnostics]
    assert codes == ["not-finite"] if source is None else source.problems or source.value == expected


@pytest.mark.parametrize("text", ['"\\ud800"', "1e999", "9" * 5000, "NaN", "-Infinity", '{"a": 1} x', "01", '"a\tb"'])
def test_what_the_standard_parser_lets_through_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_source(text, "x.json")
    assert len(caught.value.diagnostics) == 1
    assert caught.value.diagnostics[0].line == 1


def test_repeated_key_keeps_the_first_value() -> None:
    source = parse_source('{"a": 1,\n "a": 2}', "x.json")
    assert source.value == {"a": 1}
    assert [(p.code, p.pointer, p.line, p.column) for p in source.problems] == [("duplicate-key", "/a", 2, 2)]


def test_long_values_are_shown_short() -> None:
    assert show("x" * 100) == '"' + "x" * 56 + "..."
