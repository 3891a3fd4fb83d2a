"""Text from a run never becomes markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from launcher.markup import Html, data_block, join, table, tag


class Reader(HTMLParser):
    """What a browser makes of a piece of a page."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.text += data


TEXT = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]))


@given(TEXT)
def test_text_is_read_back_as_it_was(text: str) -> None:
    read = Reader(tag("p", text))
    assert (read.tags, read.text) == (["p"], text)


@given(TEXT)
def test_an_attribute_is_read_back_as_it_was(text: str) -> None:
    assert Reader(tag("p", title=text)).attributes == [("title", text)]


@given(TEXT)
def test_data_in_a_page_is_read_back_and_ends_nothing(text: str) -> None:
    read = Reader(data_block({"a": text}))
    assert read.tags == ["script"]
    assert json.loads(read.text) == {"a": text}


def test_markup_that_was_made_here_is_kept() -> None:
    assert join([Html("<b>"), "<b>"]) == "<b>&lt;b&gt;"


def test_a_cell_of_a_table_is_escaped() -> None:
    assert "<script>" not in table(["<script>"], [["<script>"]])
