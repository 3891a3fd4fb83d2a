"""A run's page, whatever became of the run."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.records import Result
from cluster.runs import Run
from launcher.history import ReportData, gather
from launcher.report import render, write_report
from tests.cluster.saves import make_files
from tests.finished import META, claim, new_run, started, training, write_rows, write_story
from tests.harness import raylift

EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """The elements of a page, and its text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        self._inside = name

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data + " "

    def count(self, name: str) -> int:
        return sum(element == name for element, _ in self.elements)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return gather(write_story(tmp_path_factory.mktemp("story")))


def page_of(run: Run) -> Page:
    return Page(render(gather(run)))


def test_the_page_tells_how_the_run_ended_and_what_it_reached(story: ReportData) -> None:
    text = Page(render(story)).text
    assert "SUCCEEDED" in text
    assert "12 of 12" in text
    assert "0.9167" in text  # the last evaluation's accuracy


def test_the_page_tells_why_an_attempt_was_lost(story: ReportData) -> None:
    assert "rank 1 died" in Page(render(story)).text


def test_the_page_tells_where_the_time_went_in_a_bar_and_a_table(story: ReportData) -> None:
    page = Page(render(story))
    drawn = [attributes for name, attributes in page.elements if name == "i" and "style" in attributes]
    assert [one["class"] for one in drawn] == ["training", "start-up", "evaluating", "repeated", "waiting", "other"]
    widths = [float((one["style"] or "").removeprefix("flex-grow:")) for one in drawn]
    assert sum(widths) == pytest.approx(1)
    assert "Goodput 23 %: of 5.0 s, 1.1 s went into steps that count." in page.text
    assert re.search(r"repeated\s+0\.2 s\s+4\.0 %\s+what was done after the checkpoint", page.text)


def test_a_pause_is_in_the_table_and_not_in_the_bar(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    claim(run, at=100.0).finish(Result(state="STOPPED", exit_code=4, at=110.0))
    claim(run, at=5000.0).finish(Result(state="STOPPED", exit_code=4, at=5010.0))
    page = page_of(run)
    assert [attributes["class"] for name, attributes in page.elements if name == "i"] == [
        "start-up",
        "start-up",
        "paused",
    ]
    assert re.search(r"paused\s+1 h 21 min\s+between the end", page.text)


def test_the_page_tells_how_fast_saves_were_and_for_how_long_they_held_training_up(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt = run.claim()
    attempt.commit(4, make_files(tmp_path, 4), {})
    row = {"event": "checkpoint", "step": 4, "bytes": 2500, "seconds": 5.0, "blocked": 1.5, "mb_per_s": 2.5}
    write_rows(attempt, "events", [row])
    assert re.search(r"took\s+MB/s\s+held up\s+folder.*\s5\.0 s\s+2\.5\s+1\.5 s\s", page_of(run).text, re.DOTALL)


def test_the_page_marks_the_best_checkpoint(story: ReportData) -> None:
    assert re.search(r">12<span[^>]*>best<", render(story))


def test_a_step_that_was_repeated_is_drawn_once(story: ReportData) -> None:
    found = re.search(r'<script type="application/json" id="curves-data">(.*?)</script>', render(story))
    assert found is not None
    drawn = json.loads(found[1])
    assert drawn["charts"][0]["series"][0]["x"] == list(range(1, 13))
    assert drawn["restarts"] == [8]


def test_the_page_loads_nothing_from_elsewhere(story: ReportData) -> None:
    links = [
        value
        for _, attributes in Page(render(story)).elements
        for key, value in attributes.items()
        if key in ("src", "href", "action", "data", "poster", "srcset")
    ]
    assert links == ["data:,"]


def test_the_same_run_gives_the_same_page(story: ReportData) -> None:
    assert render(story) == render(story)


def test_text_of_a_run_stays_text(tmp_path: Path, story: ReportData) -> None:
    clean = Page(render(story))
    run = new_run(tmp_path, job=f"name: {EVIL}\ntask: image-classification\n")
    attempt = run.claim()
    ready = {"time": 1.0, "event": "data.ready", **META, "classes": [EVIL], "seconds": 0.5}
    cleaned = {"time": 1.0, "event": "data.cleaned", "split": EVIL, "reason": EVIL, "count": 1, "items": [EVIL]}
    memory = {"time": 2.0, "event": "memory", "process": EVIL, "peak_bytes": 1}
    write_rows(attempt, "events", [cleaned, ready, {**started(0, at=1.5), "device": EVIL}, memory])
    rows = training(0, 4, begin=2.0)
    write_rows(
        attempt, "metrics", [{**row, **({f"eval_{EVIL}": 1.0} if row["kind"] == "eval" else {})} for row in rows]
    )
    attempt.finish(Result(state="FAILED", message=EVIL, exit_code=1))
    page = page_of(run)
    assert page.count("img") == 0
    assert page.count("script") == clean.count("script")
    assert page.text.count(EVIL) >= 8  # headline, tile, device, class, cleaning, memory, attempt, job file


def test_the_page_of_a_run_that_never_began_says_so(tmp_path: Path) -> None:
    text = page_of(new_run(tmp_path)).text
    assert "No step has been trained yet" in text
    assert "Where the time went" not in text


def test_the_page_of_a_run_that_failed_before_its_first_step_says_why(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.claim().finish(Result(state="FAILED", message="the data is empty", exit_code=1))
    text = page_of(run).text
    assert "the data is empty" in text
    assert "ended before its first step" in text


def test_a_page_without_curves_carries_no_plotting_library(tmp_path: Path) -> None:
    assert len(render(gather(new_run(tmp_path)))) < 50_000


def test_the_page_of_a_run_that_goes_on_shows_its_steps_so_far(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt = run.claim()
    write_rows(attempt, "events", [started(0, at=1.0)])
    write_rows(attempt, "metrics", training(0, 3, begin=1.0))
    assert "3 of 12" in page_of(run).text


def test_the_page_of_a_job_file_that_does_not_read_shows_it_as_it_is(tmp_path: Path) -> None:
    assert "task: of-another-version" in page_of(new_run(tmp_path, job="task: of-another-version\n")).text


def test_a_run_with_a_million_rows_still_gives_a_page_of_a_few_megabytes(story: ReportData) -> None:
    rows = [{**row, "attempt": 1} for row in training(0, 100_000, begin=1.0, per_epoch=1000)]
    assert len(render(dataclasses.replace(story, metrics=rows))) < 6_000_000


def test_a_report_that_cannot_be_written_says_where_else(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with pytest.raises(UsageError, match="--output FILE"):
        write_report(run, tmp_path / "no such folder" / "page.html")


def test_the_command_writes_the_page_of_a_run_by_its_id(tmp_path: Path) -> None:
    run = write_story(tmp_path / "runs")
    done = raylift("report", run.id, "--storage", tmp_path / "runs", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout)["path"])
    assert path == tmp_path / f"{run.id}.html"
    assert path.stat().st_size == json.loads(done.stdout)["bytes"]
