"""Rows in storage: each once and in order, whatever storage does meanwhile."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StorageError
from cluster.runs import Run
from cluster.segments import SegmentReader, SegmentWriter
from cluster.storage.file import FileStorage
from tests.hooked import hooked


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(FileStorage(tmp_path), "digits")
    run.create(b"")
    run.claim()
    return run


class Outage:
    """A storage that takes no writes while it is away; with `deaf`, it takes them and loses its reply."""

    def __init__(self, run: Run, *, deaf: bool = False) -> None:
        self.away = False
        self.tries = 0
        self.run = Run(hooked(run.storage, **{"after" if deaf else "before": self._fail}), run.id)

    def _fail(self, name: str, *_: Any) -> None:
        self.tries += name == "write"
        if self.away and name == "write":
            raise StorageError("storage is away")


def write(run: Run, *numbers: int) -> SegmentWriter:
    writer = SegmentWriter(run, 1, "metrics", "rank-0")
    append(writer, *numbers)
    return writer


def append(writer: SegmentWriter, *numbers: int) -> None:
    for number in numbers:
        writer.append({"n": number})


def numbers(run: Run) -> list[int]:
    return [row["n"] for row in run.rows_of(1, "metrics")]


def read(reader: SegmentReader) -> list[int]:
    return [row["n"] for row in reader.read_rows()]


def segments(run: Run) -> list[str]:
    return [entry.path.rpartition("/")[2] for entry in run.storage.list(run.path("attempts/000001/metrics/"))]


def test_rows_come_back_in_the_order_in_which_they_were_appended(run: Run) -> None:
    writer = write(run, *range(50))
    writer.flush()
    append(writer, *range(50, 90))
    writer.close()
    assert numbers(run) == list(range(90))


def test_a_row_says_when_it_was_written(run: Run) -> None:
    write(run, 1).close()
    assert abs(run.rows_of(1, "metrics")[0]["time"] - time.time()) < 30


def test_rows_of_many_threads_all_arrive(run: Run) -> None:
    writer = write(run)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda start: append(writer, *range(start, start + 100)), range(0, 800, 100)))
    writer.close()
    assert sorted(numbers(run)) == list(range(800))


def test_nothing_appended_writes_nothing(run: Run) -> None:
    writer = write(run)
    writer.flush()
    writer.close()
    assert segments(run) == []


def test_rows_reach_storage_within_seconds_without_a_flush(run: Run) -> None:
    writer = write(run, 1)
    deadline = time.monotonic() + 20
    while not segments(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert numbers(run) == [1]
    writer.close()


def test_a_reader_follows_row_by_row(run: Run) -> None:
    reader, found = SegmentReader(run, 1, "metrics", "rank-0"), []
    found.append(read(reader))
    writer = write(run, 1)
    writer.flush()
    found.append(read(reader))
    append(writer, 2)
    writer.flush()
    append(writer, 3)
    writer.flush()
    found += [read(reader), read(reader)]
    writer.close()
    assert found == [[], [1], [2, 3], []]


def test_a_reader_reads_one_writer_alone(run: Run) -> None:
    for name in ("rank-0", "rank-1"):
        writer = SegmentWriter(run, 1, "logs", name)
        writer.append_bytes(f"printed by {name}\n".encode())
        writer.close()
    assert SegmentReader(run, 1, "logs", "rank-1").read_new() == b"printed by rank-1\n"
    assert run.output_of(1) == {"rank-0": b"printed by rank-0\n", "rank-1": b"printed by rank-1\n"}


@pytest.mark.parametrize("deaf", [False, True], ids=["nothing arrives", "no reply arrives"])
def test_while_storage_is_away_rows_wait_and_none_is_lost_or_doubled(run: Run, *, deaf: bool) -> None:
    outage = Outage(run, deaf=deaf)
    writer = write(outage.run, 1, 2)
    writer.flush()
    outage.away = True
    for number in (3, 4, 5):
        append(writer, number)
        with pytest.raises(StorageError, match="storage is away"):
            writer.flush()
    outage.away = False
    append(writer, 6)
    writer.close()
    assert numbers(run) == [1, 2, 3, 4, 5, 6]


def test_a_segment_never_changes_once_a_reader_may_have_seen_it(run: Run) -> None:
    outage = Outage(run, deaf=True)
    reader = SegmentReader(run, 1, "metrics", "rank-0")
    outage.away = True
    writer = write(outage.run, 1)
    with pytest.raises(StorageError):
        writer.flush()
    found = read(reader)
    outage.away = False
    append(writer, 2)
    writer.close()
    assert found + read(reader) == [1, 2]


def test_an_outage_is_not_felt_by_those_who_append(run: Run) -> None:
    outage = Outage(run)
    outage.away = True
    writer = write(outage.run, 1)
    deadline = time.monotonic() + 20
    while outage.tries < 2 and time.monotonic() < deadline:  # the thread tries again and again
        time.sleep(0.05)
    append(writer, 2)
    outage.away = False
    writer.close()
    assert numbers(run) == [1, 2]


def test_the_end_of_a_writer_that_cannot_write_is_heard(run: Run) -> None:
    outage = Outage(run)
    outage.away = True
    with pytest.raises(StorageError, match="storage is away"):
        write(outage.run, 1).close()


def test_a_closed_writer_leaves_no_thread(run: Run) -> None:
    others = set(threading.enumerate())  # of other tests
    write(run, 1).close()
    assert "segments-metrics" not in [thread.name for thread in set(threading.enumerate()) - others]


def test_a_flush_ends_though_rows_keep_coming(run: Run) -> None:
    def one_more(name: str, *_: Any) -> None:
        if name == "write":
            append(writer, 2)

    writer = write(Run(hooked(run.storage, after=one_more), run.id), 1)
    writer.flush()
    assert numbers(run) in ([1], [1, 2])
    writer.close()


# -- segments that are merged in one


def one_by_one(run: Run, count: int) -> SegmentWriter:
    """Write a segment for each number; none is written by the writer's own clock."""
    writer = write(run)
    for number in range(count):
        append(writer, number)
        writer.flush()
    return writer


def test_rows_of_many_segments_are_read_once_each_by_few_requests(run: Run) -> None:
    one_by_one(run, 250).close()
    asked: list[str] = []
    counting = Run(hooked(run.storage, before=lambda name, *_: asked.append(name)), run.id)
    assert numbers(counting) == list(range(250))
    assert asked.count("read") == 2 + 50
    assert read(SegmentReader(run, 1, "metrics", "rank-0")) == list(range(250)), "the segments themselves stay"


def test_what_was_printed_is_there_once(run: Run) -> None:
    writer = SegmentWriter(run, 1, "logs", "rank-0")
    for number in range(120):
        writer.append_bytes(b"%d\n" % number)
        writer.flush()
    writer.close()
    assert run.output_of(1) == {"rank-0": b"".join(b"%d\n" % number for number in range(120))}


def test_large_segments_are_merged_before_they_take_much_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.segments._MERGED_BYTES", 200)  # each has some 40
    one_by_one(run, 20).close()
    assert sum("_" in name for name in segments(run)) >= 2
    assert numbers(run) == list(range(20))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_merged_segment_that_storage_did_not_take_or_did_not_say_so_costs_no_row(run: Run, when: str) -> None:
    def fail(name: str, *arguments: Any) -> None:
        if name == "write" and "_" in arguments[0]:
            raise StorageError("storage is away")

    one_by_one(Run(hooked(run.storage, **{when: fail}), run.id), 130).close()
    assert any("_" in name for name in segments(run)) == (when == "after")
    assert numbers(run) == list(range(130))


# -- clocks


def test_the_rows_of_a_writer_keep_their_order_where_its_clock_is_set_back(run: Run) -> None:
    for writer, rows in {"driver": [(1, 10.0), (3, 5.0), (4, 12.0)], "rank-0": [(2, 10.5), (5, 13.0)]}.items():
        segments = SegmentWriter(run, 1, "metrics", writer)
        for number, at in rows:
            segments.append({"n": number, "time": at})
            segments.flush()
        segments.close()
    assert numbers(run) == [1, 3, 2, 4, 5]
