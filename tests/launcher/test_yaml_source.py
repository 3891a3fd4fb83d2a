"""YAML with the place of every value."""

import pytest

from launcher.mistakes import Place
from launcher.yaml_source import parse, parse_option

TEXT = """\
a: 1
b:
  - x
  - {c: 2.5}
d: {e: [true, null]}
"""


def test_every_value_is_at_its_place_and_a_block_at_its_key() -> None:
    document = parse(TEXT, "f")
    assert {path: str(place) for path, place in document.places.items()} == {
        (): "f:1:1",
        ("a",): "f:1:4",
        ("b",): "f:2:1",
        ("b", 0): "f:3:5",
        ("b", 1): "f:4:5",
        ("b", 1, "c"): "f:4:9",
        ("d",): "f:5:1",
        ("d", "e"): "f:5:5",
        ("d", "e", 0): "f:5:9",
        ("d", "e", 1): "f:5:15",
    }


def test_what_has_no_place_is_at_the_nearest_block_around_it() -> None:
    document = parse(TEXT, "f")
    assert document.place(("d", "x", "y")) == Place("f", 5, 1)
    assert document.place(("x",)) == Place("f", 1, 1)


def test_a_value_is_found_by_its_path_and_none_where_there_is_none() -> None:
    document = parse(TEXT, "f")
    assert document.get(("b", 1, "c")) == 2.5
    assert [document.get(path) for path in (("b", 2), ("b", "x"), ("a", "x"), ("x", "y"))] == [None] * 4


def test_all_of_an_option_is_at_the_option() -> None:
    document = parse_option("{a: [1, 2], a: 3}", "--set k={…}", "k")
    assert {str(place) for place in document.places.values()} == {"--set k={…}"}
    assert [str(mistake.place) for mistake in document.mistakes] == ["--set k={…}"]


def test_an_alias_is_the_value_it_stands_for() -> None:
    assert parse("a: &x {b: 1}\nc: *x\n", "f").value == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [*x]", "f:1:4: a.0: this alias refers to itself"),
        (
            "a: !!python/object:os.system {}",
            "f:1:4: a: the tag tag:yaml.org,2002:python/object:os.system means nothing",
        ),
        ("a: !!binary aGk=", "f:1:4: a: the tag tag:yaml.org,2002:binary means nothing here"),
        ("a: !!int x", "f:1:4: a: 'x' is not what its tag says"),
        ("a: {{x}}", "f:1:5: a: a key must be text; a value that starts with { or [ goes in quotes"),
        ("a: 1\n---\nb: 1", "f:2:1: this is not valid YAML: expected a single document in the stream"),
        ("a: *x", "f:1:4: this is not valid YAML: found undefined alias 'x'"),
        ("a: \x07", "f:1:1: this is not valid YAML: unacceptable character #x0007"),
    ],
)
def test_what_a_job_file_has_no_use_for_is_a_mistake_at_its_place(text: str, message: str) -> None:
    (mistake,) = parse(text, "f").mistakes
    assert str(mistake).startswith(message)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert parse("{1: a, true: b, 2026-01-31: c}", "f").value == {"1": "a", "true": "b", "2026-01-31": "c"}


def test_a_document_put_into_another_brings_its_places_and_takes_those_that_it_replaces() -> None:
    document = parse("a: {b: {c: 1}}\n", "f")
    document.put(("a", "b"), parse("d: 2\n", "g"), below_text=lambda _path, _text: {})
    assert document.value == {"a": {"b": {"d": 2}}}
    assert document.place(("a", "b", "d")) == Place("g", 1, 4)
    assert ("a", "b", "c") not in document.places
