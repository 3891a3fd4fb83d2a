"""What the parts of a page are made of."""

from __future__ import annotations

import time
from collections.abc import Sequence

from launcher.curves import Chart
from launcher.markup import Content, Html, tag

ENLARGE = "Drag over a part to enlarge it, double-click to go back."


def section(title: str, *content: Content) -> Html:
    return tag("section", tag("h2", title), *content)


def facts(pairs: Sequence[tuple[Content, Content]]) -> Html:
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in pairs])


def tiles(figures: Sequence[tuple[str, str]]) -> Html:
    """Return names with their values, the values large."""
    shown = [tag("div", tag("b", value), tag("span", name), class_="tile") for name, value in figures]
    return tag("section", shown, class_="tiles") if shown else Html("")


def chart_card(chart: Chart, index: int) -> Html:
    """Return the place that the page's script draws a chart into."""
    checked = " checked" if chart.logarithmic else ""
    box = Html(f'<input type="checkbox" data-chart="{index}"{checked}> logarithmic')
    scale = tag("label", box) if chart.loss else None
    return card(chart.title, tag("div", id=f"curve-{index}", class_="plot"), beside=scale)


def card(title: str, *content: Content, beside: Content = None) -> Html:
    return tag("div", tag("div", tag("h3", title), beside, class_="card-head"), *content, class_="card")


def without_script() -> Html:
    return tag("noscript", tag("p", "The curves are drawn by this page's own script, which is switched off here."))


def note(text: str) -> Html:
    return tag("p", text, class_="note")


def chip(state: str) -> Html:
    return tag("span", state, class_=f"state {state.lower().replace(' ', '-')}")


def mark(text: str) -> Html:
    return tag("span", text, class_="mark")


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def count(number: int, word: str, plural: str = "") -> str:
    return f"{number:,} {word if number == 1 else plural or word + 's'}"
