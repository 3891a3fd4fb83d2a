"""Numbers as people read them."""

from __future__ import annotations

import shlex

import pytest

from launcher.text import decimal, duration, number, size, typed


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1200, "1.2 kB"), (45.6e6, "45.6 MB"), (2e9, "2.0 GB"), (3e15, "3000.0 TB")],
)
def test_bytes_have_a_unit(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("value", "text"), [(1234567, "1,234,567"), (100, "100"), (12.345, "12.3"), (0, "0")])
def test_large_numbers_have_their_thousands_apart(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0000"),
        (0.12345, "0.1235"),
        (1e-7, "1e-07"),
        (-2.5, "-2.5000"),
        (1.2345e24, "1.235e+24"),
        (float("nan"), "nan"),
    ],
)
def test_a_loss_has_four_digits_however_large_it_is(value: float, text: str) -> None:
    assert decimal(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.3, "0.3 s"),
        (42.4, "42 s"),
        (59.7, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.8, "1 h 0 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("uri", ["/home/me/runs/a", "/home/me/my runs/a", "s3://bucket/$(id)/a"])
def test_a_run_is_typed_as_a_shell_reads_it(uri: str) -> None:
    assert shlex.split(f"raylift status {typed(uri)}") == ["raylift", "status", uri]
