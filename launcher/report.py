"""A run as one HTML page that needs nothing else: readable offline, in mail, years later."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from cluster.errors import UsageError
from cluster.runs import Run
from launcher import sections, sweep_sections
from launcher.curves import build_charts
from launcher.history import ReportData, gather
from launcher.markup import Html, data_block, tag
from launcher.sweep_charts import draw

_SCRIPTS = ("page.js", "report.js", "parallel.js")


def write_report(run: Run, target: Path) -> None:
    """Write a run's page to a file that appears only when complete. Raises UsageError where it cannot."""
    page = render(gather(run)).encode()
    try:
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        try:
            with open(handle, "wb") as file:
                file.write(page)
            os.chmod(partial, 0o644)
            os.replace(partial, target)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror}. Write it elsewhere: --output FILE") from error


def render(data: ReportData) -> str:
    """Return the page. Pure: the same data, the same page."""
    if data.sweep is None:
        charts, parallel = build_charts(data.metrics, data.steps_per_epoch), None
        parts = [*sections.before_curves(data), sections.curves(data, charts), *sections.after_curves(data)]
    else:
        drawing = draw(data.sweep, data.spec)
        charts, parallel = list(drawing.charts), drawing.parallel
        parts = sweep_sections.page(data, data.sweep, drawing)
    marks = [claim.base.step if claim.base else 0 for claim in data.claims[1:]]
    drawn = {"charts": [asdict(chart) for chart in charts], "restarts": marks}
    drawn |= {"parallel": asdict(parallel)} if parallel is not None else {}
    scripts = [_plotly(), *map(_resource, _SCRIPTS)] if charts else []
    content = [
        tag("main", parts),
        data_block(drawn, id="curves-data"),
        *(tag("script", script) for script in scripts),
    ]
    return f"<!DOCTYPE html>\n{tag('html', _head(data, scripts), tag('body', content), lang='en')}\n"


def _head(data: ReportData, scripts: list[Html]) -> Html:
    """Return the head; its policy fetches nothing and runs no script but ours, whatever a run put on the page."""
    allowed = " ".join(_fingerprint(script) for script in scripts) or "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}"
    return tag(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Html('<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'),
        tag("title", f"{data.summary.id}: {data.summary.state.lower()} – raylift"),
        tag("style", _resource("report.css")),
    )


def _fingerprint(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _plotly() -> Html:
    from plotly.offline import get_plotlyjs

    return Html(get_plotlyjs())


def _resource(name: str) -> Html:
    return Html((files("launcher") / "page" / name).read_text(encoding="utf-8"))
