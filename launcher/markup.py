"""HTML in which all text is escaped, unless it was made here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Content = str | int | Html | Iterable["Content"] | None


def tag(name: str, *content: Content, **attributes: str | None) -> Html:
    """Return an element; `class_` and `data_x` are written class and data-x, attributes that are None left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{join(content)}</{name}>")


def join(content: Content) -> Html:
    """Put content together, escaping every part that is not Html."""
    if isinstance(content, Html):
        return content
    if content is None:
        return Html("")
    if isinstance(content, str | int):
        return Html(escape(str(content)))
    return Html("".join(join(part) for part in content))


def table(head: Iterable[Content], rows: Iterable[Iterable[Content]], **attributes: str | None) -> Html:
    """Return a table that scrolls by itself where it is too wide for the page."""
    header = tag("tr", [tag("th", cell, scope="col") for cell in head])
    body = [tag("tr", [tag("td", cell) for cell in row]) for row in rows]
    return tag("div", tag("table", tag("thead", header), tag("tbody", body), **attributes), class_="wide")


def data_block(value: object, **attributes: str) -> Html:
    """Return JSON that a script of the page reads; nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return tag("script", Html(text), type="application/json", **attributes)
