"""The page in a real browser: it draws its curves, complains of nothing, asks nobody."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.history import gather
from launcher.report import render
from tests.finished import write_story
from tests.sweeps import searched

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium"),
]

QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=5000"]
QUIET += ["--host-resolver-rules=MAP * ~NOTFOUND"]  # whatever it asks, on its own account too, leaves no machine


@dataclass(frozen=True)
class Visit:
    """What a browser made of a page."""

    document: str
    console: list[str]
    requests: list[str]


def visit(page: Path, tmp_path: Path) -> Visit:
    assert BROWSER is not None
    log = tmp_path / "net.json"
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"]
    command += ["--enable-logging=stderr", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Visit(
        document=done.stdout,
        console=re.findall(r"CONSOLE[:(]\d+\)?\]\s*(.*)", done.stderr),
        requests=requests_of_the_page(json.loads(log.read_text())),
    )


def requests_of_the_page(log: dict[str, Any]) -> list[str]:
    """Return the addresses that the page asked for; the browser's own requests have no origin as initiator."""
    starts = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event["params"] for event in log["events"] if event["type"] == starts and "url" in event.get("params", {})]
    own = [one["url"] for one in asked if one["initiator"] != "not an origin"]
    return [url for url in own if not url.startswith(("data:", "blob:", "file:"))]


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    folder = tmp_path_factory.mktemp("page")
    page = folder / "page.html"
    page.write_text(render(gather(write_story(folder / "runs"))), encoding="utf-8")
    return visit(page, folder)


def test_every_curve_is_drawn(visited: Visit) -> None:
    plots = re.split(r'<div id="curve-\d"', visited.document)[1:]
    assert len(plots) == 6
    assert all('class="js-line"' in plot for plot in plots)


def test_all_of_a_sweep_is_drawn_and_its_trials_are_listed(tmp_path: Path) -> None:
    found = visit(page_of_a_sweep(tmp_path, 60), tmp_path)
    plots = re.split(r'<div id="curve-\d"', found.document.partition('<div id="parallel"')[0])[1:]
    drawn = ['class="js-line"', 'class="js-line"', 'class="point"', 'class="js-fill"']
    assert [mark in plot for mark, plot in zip(drawn, plots, strict=True)] == [True] * 4
    parallel = found.document.partition('<div id="parallel"')[2].partition("</section>")[0]
    assert parallel.count('class="js-line"') >= 10
    assert all(f"<b>{name}</b>" in parallel or f">{name}<" in parallel for name in ("lr", "momentum", "accuracy"))
    assert (found.console, found.requests) == ([], [])
    assert "training diverged: the loss is nan at step 30" in found.document


def test_a_part_of_an_axis_keeps_the_trials_that_cross_it(tmp_path: Path) -> None:
    page = page_of_a_sweep(tmp_path, 60)
    box = '{"x0": -0.2, "x1": 0.2, "y0": 0.9, "y1": 1.1, "xref": "x", "yref": "y", "type": "rect"}'
    script = f"""
        const plot = document.getElementById("parallel");
        const names = () => plot.data.map((trace) => trace.name);
        plot.emit("plotly_selected", {{ selections: [{box}] }});
        const first = names().includes("other");
        const traces = plot.data.filter((trace) => trace.name !== "other");
        const kept = traces.flatMap((trace) => trace.y.filter((_, index) => trace.x[index] === 0));
        const all = kept.every((y) => y >= 0.9);
        plot.emit("plotly_deselect");
        document.title = `kept ${{first}} ${{all}} ${{kept.length > 0}} ${{names().includes("other")}}`;
    """
    assert "<title>kept true true true false</title>" in visit(with_script(page, script), tmp_path).document


@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_sweep_of_few_or_many_trials_is_drawn_without_complaint(tmp_path: Path, count: int) -> None:
    found = visit(page_of_a_sweep(tmp_path, count), tmp_path)
    assert (found.console, found.requests) == ([], [])
    assert 'class="js-line"' in found.document.partition('<div id="parallel"')[2]


def page_of_a_sweep(folder: Path, count: int) -> Path:
    run, _ = searched(folder, count)
    page = folder / "page.html"
    page.write_text(render(gather(run)), encoding="utf-8")
    return page


def with_script(page: Path, script: str) -> Path:
    """Let a page run one more script, after its own."""
    print_of = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = page.read_text().replace("script-src ", f"script-src 'sha256-{print_of}' ", 1)
    page.write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return page


def test_the_console_stays_empty(visited: Visit) -> None:
    assert visited.console == []


def test_nothing_is_asked_of_the_network(visited: Visit) -> None:
    assert visited.requests == []


def test_a_script_that_got_onto_the_page_would_neither_run_nor_ask(tmp_path: Path) -> None:
    html = render(gather(write_story(tmp_path / "runs")))
    evil = '<script>document.title = "taken over"</script><img src="http://127.0.0.1:9/x">'
    page = tmp_path / "page.html"
    page.write_text(html.replace("<main>", f"<main>{evil}", 1), encoding="utf-8")
    found = visit(page, tmp_path)
    assert "<title>taken over" not in found.document
    assert found.requests == []
    assert len([line for line in found.console if "Content Security Policy" in line]) == 2


def test_these_checks_would_notice_a_page_that_asks_the_network(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x">')
    assert visit(page, tmp_path).requests == ["http://127.0.0.1:9/x"]
