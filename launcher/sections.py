"""The parts of a run's page, top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cluster.records import Checkpoint, Claim
from cluster.selection import best_of
from launcher import pieces
from launcher.curves import Chart
from launcher.display import describe_event
from launcher.history import ReportData, ending_of
from launcher.markup import Content, Html, table, tag
from launcher.text import duration, number, size

_CLASSES = 60  # shown by name
_PARTS = {
    "training": "steps that count",
    "start-up": "Ray, the data and the ranks, from an attempt's claim to its first step",
    "restoring": "reading the checkpoint that an attempt goes on from",
    "evaluating": "measuring on the evaluation data",
    "repeated": "what was done after the checkpoint that a later attempt went on from, and had to be done again",
    "saves": "training stood still while a checkpoint was copied; uploading goes on behind it",
    "waiting": "from the last sign of an attempt to the start of the next, and for machines with room for the ranks",
    "other": "what is left: the end of an attempt, above all, with its last checkpoint on its way",
    "paused": "between the end of an attempt and a person's resume; in no share",
}


def before_curves(data: ReportData) -> list[Html]:
    return [headline(data), pieces.tiles(_figures(data)), _goodput(data)]


def curves(data: ReportData, charts: Sequence[Chart]) -> Html:
    """Return the places that the page's script draws into."""
    if not charts:
        over = data.summary.state.is_final
        words = "The run ended before its first step." if over else "No step has been trained yet."
        return pieces.section("Learning curves", tag("p", words, class_="empty"))
    cards = [pieces.chart_card(chart, index) for index, chart in enumerate(charts)]
    hints = [pieces.ENLARGE]
    if any(claim.base for claim in data.claims[1:]):
        hints.append("Dotted: where a later attempt went on from a checkpoint.")
    return pieces.section(
        "Learning curves",
        tag("div", cards, class_="charts"),
        tag("p", " ".join(hints), class_="note"),
        pieces.without_script(),
    )


def after_curves(data: ReportData) -> list[Html]:
    return [_checkpoints(data), *about(data)]


def about(data: ReportData) -> list[Html]:
    """Return what a page says at its end, of a run or of a sweep."""
    parts = [_attempts(data), _samples(data), _machine(data), _job(data), _happenings(data)]
    made = f"Read from {data.summary.uri} on {pieces.moment(data.made)}"
    by = f" by raylift {data.version}" if data.version else " by raylift"
    return [*(part for part in parts if part), tag("footer", made, by, ".")]


# -- before the curves


def headline(data: ReportData) -> Html:
    state = data.summary.state
    took = duration(max(data.ended - data.created, 0.0))
    facts = [
        f"Started {pieces.moment(data.created)}",
        f"took {took}" if state.is_final else f"for {took} so far",
        f"{pieces.count(data.training['world_size'], 'rank')} on {data.training['device']}" if data.training else "",
        f"{number(data.training['parameters'])} parameters" if data.training else "",
        pieces.count(data.summary.restarts, "restart") if data.summary.restarts else "",
    ]
    said = data.summary.reason
    return tag(
        "header",
        tag("h1", data.summary.id, " ", pieces.chip(state)),
        tag("p", data.what, class_="facts"),
        tag("p", " · ".join(fact for fact in facts if fact), class_="facts"),
        tag("p", said, class_=f"said {state.lower()}") if said else None,
    )


def _figures(data: ReportData) -> list[tuple[str, str]]:
    steps = [row for row in data.metrics if row["kind"] == "step"]
    evaluations = [row for row in data.metrics if row["kind"] == "eval"]
    found = []
    if evaluations:
        measured = {key: value for key, value in evaluations[-1].items() if key.startswith("eval_")}
        found += [(name.removeprefix("eval_") + ", evaluation", f"{value:.4f}") for name, value in measured.items()]
        found.sort(key=lambda one: one[0].startswith("loss"))
    if steps:
        found.append(("loss, training", f"{steps[-1]['loss']:.4f}"))
        found.append(("samples/s, median", number(median(row["samples_per_s"] for row in steps))))
    if data.training:
        step = steps[-1]["step"] if steps else data.training["step"]
        found.append(("step", f"{step:,} of {data.training['last_step']:,}"))
    return found


def _goodput(data: ReportData) -> Html:
    """Draw where the time went as one bar, and say it in a table."""
    spent = data.goodput
    if spent is None or not spent.total:
        return Html("")
    parts = {name: milliseconds / 1000 for name, milliseconds in spent.parts().items() if milliseconds}
    total = spent.total / 1000
    shares = [
        tag("i", class_=name, style=f"flex-grow:{seconds / total:.5f}", title=f"{name}: {duration(seconds)}")
        for name, seconds in parts.items()
        if name != "paused"
    ]
    rows = [
        [
            [tag("i", class_=name), name],
            duration(seconds),
            f"{100 * seconds / total:.1f} %" if name != "paused" else "",
            _PARTS[name],
        ]
        for name, seconds in parts.items()
    ]
    counted = duration(spent.training / 1000)
    return pieces.section(
        "Where the time went",
        tag("p", f"Goodput {100 * spent.share:.0f} %: of {duration(total)}, {counted} went into steps that count."),
        tag("div", shares, class_="bar"),
        table(["", "time", "share", "what it went into"], rows, class_="parts"),
    )


# -- after the curves


def _checkpoints(data: ReportData) -> Html:
    saved = {row["step"]: row for row in data.events if row["event"] == "checkpoint"}
    if not data.checkpoints:
        return pieces.section("Checkpoints", tag("p", "There is none.", class_="empty"))
    best = best_of(data.checkpoints)
    names = list(dict.fromkeys(name for one in data.checkpoints for name in one.info.get("metrics", {})))
    rows = [_checkpoint(one, saved.get(one.step, {}), names, best) for one in reversed(data.checkpoints)]
    head = [
        "step",
        *(name.removeprefix("eval_") for name in names),
        "size",
        "saved",
        "took",
        "MB/s",
        "held up",
        "folder",
    ]
    gone = len(set(saved) - {one.step for one in data.checkpoints})
    note = f"{pieces.count(gone, 'older checkpoint')} gave way to newer ones, as checkpoint.keep says." if gone else ""
    return pieces.section("Checkpoints", table(head, rows), pieces.note(note) if note else None)


def _checkpoint(
    one: Checkpoint, saved: Mapping[str, Any], names: Sequence[str], best: Checkpoint | None
) -> list[Content]:
    measured = one.info.get("metrics", {})
    mark = pieces.mark("best") if best is not None and one.step == best.step else None
    return [
        [f"{one.step:,}", mark],
        *(f"{measured[name]:.4f}" if name in measured else "" for name in names),
        size(one.size),
        pieces.moment(saved["time"]) if saved else "",
        duration(saved["seconds"]) if saved else "",
        str(saved.get("mb_per_s", "")),
        duration(saved["blocked"]) if "blocked" in saved else "",
        tag("code", one.folder),
    ]


def _attempts(data: ReportData) -> Html:
    if not data.claims:
        return Html("")
    rows: list[list[Content]] = []
    for claim in data.claims:
        state, why = ending_of(data, claim)
        trained = _trained(data, claim) if data.sweep is None else []
        began = [str(claim.attempt), pieces.moment(claim.at), claim.host]
        rows.append([*began, *trained, pieces.chip(state), why])
    columns = ["ranks", "steps"] if data.sweep is None else []
    return pieces.section("Attempts", table(["attempt", "started", "host", *columns, "ended", "why"], rows))


def _trained(data: ReportData, claim: Claim) -> list[str]:
    """Say on how many ranks an attempt trained, and from which step to which."""
    steps = [row["step"] for row in data.metrics if row["attempt"] == claim.attempt and row["kind"] == "step"]
    ranks = [row["world_size"] for row in data.events if row["attempt"] == claim.attempt and "world_size" in row]
    began = claim.base.step if claim.base else 0
    return [str(ranks[-1]) if ranks else "", f"{began:,} to {max(steps):,}" if steps else f"{began:,}"]


def _samples(data: ReportData) -> Html:
    ready = data.newest("data.ready")
    if not ready:
        return Html("")
    facts: list[tuple[str, Content]] = [
        ("to train on", f"{ready['train']:,}"),
        ("to evaluate on", f"{ready['eval']:,}"),
    ]
    if "image" not in ready:  # of a task of one's own
        return pieces.section("Data", pieces.facts(facts))
    height, width, channels = ready["image"]
    classes = ready["classes"]
    more = f" and {len(classes) - _CLASSES} more" if len(classes) > _CLASSES else ""
    facts += [
        ("image", f"{height}×{width}, {pieces.count(channels, 'channel')}"),
        (
            pieces.count(len(classes), "class", "classes"),
            [[tag("span", name, class_="label") for name in classes[:_CLASSES]], more],
        ),
        ("made ready in", duration(ready["seconds"])),
    ]
    return pieces.section("Data", pieces.facts(facts), _cleaned(data, ready["attempt"]))


def _cleaned(data: ReportData, attempt: int) -> Html:
    """List what cleaning dropped when the data was last made ready."""
    rows: list[list[Content]] = []
    for row in data.events:
        if row["event"] == "data.cleaned" and row["attempt"] == attempt:
            listed = tag("ul", [tag("li", item) for item in row["items"]])
            unlisted = row["count"] - len(row["items"])
            more = tag("p", f"and {unlisted:,} more", class_="note") if unlisted > 0 else None
            which = tag("details", tag("summary", "which"), listed, more)
            rows.append([row["split"], row["reason"], f"{row['count']:,}", which])
    if not rows:
        return tag("p", "Cleaning dropped nothing.", class_="note")
    return table(["dropped from", "because", "samples", ""], rows)


def _machine(data: ReportData) -> Html:
    peaks = {row["process"]: row["peak_bytes"] for row in data.events if row["event"] == "memory"}
    versions: dict[str, str] = {}
    for checkpoint in data.checkpoints:
        versions |= {key: value for key, value in checkpoint.info.items() if isinstance(value, str)}
    facts: list[tuple[str, Content]] = [(f"peak memory, {name}", size(peak)) for name, peak in peaks.items()]
    facts += versions.items()
    return pieces.section("Memory and versions", pieces.facts(facts)) if facts else Html("")


def _job(data: ReportData) -> Html:
    lines = data.job.splitlines()
    shown = lines[1:] if lines and lines[0].startswith("# run ") else lines
    return pieces.section("Job file", tag("pre", tag("code", "\n".join(shown))))


def _happenings(data: ReportData) -> Html:
    rows = [
        [pieces.moment(row["time"]), str(row["attempt"]), said]
        for row in data.events
        if (said := describe_event(dict(row), row["attempt"]))
    ]
    if not rows:
        return Html("")
    listed = table(["when", "attempt", "what"], rows)
    return pieces.section("What happened", tag("details", tag("summary", pieces.count(len(rows), "event")), listed))
