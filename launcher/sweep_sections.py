"""The parts of a sweep's page, top to bottom."""

from __future__ import annotations

from cluster.trials import ENDED, Trial, seeds_of
from launcher import pieces, sections
from launcher.history import ReportData
from launcher.markup import Content, Html, table, tag
from launcher.sweep_charts import Budget, Drawing, budget_of
from launcher.sweeps import Sweep, shown
from launcher.text import decimal, duration, so_many, typed

_TRIALS = 500  # listed
_AXIS = 105  # pixels that an axis takes at least


def page(data: ReportData, sweep: Sweep, drawing: Drawing) -> list[Html]:
    budget = budget_of(sweep, data.spec)
    return [
        sections.headline(data),
        pieces.tiles(_figures(sweep, budget)),
        _best(data, sweep),
        _curves(data, drawing, budget),
        _parallel(drawing),
        _trials(sweep),
        *sections.about(data),
    ]


def _figures(sweep: Sweep, budget: Budget) -> list[tuple[str, str]]:
    found = []
    if sweep.best is not None:
        seeds = seeds_of(sweep.best.number, sweep.trials, sweep.metric)
        which = f"best mean of {so_many(seeds, 'seed')}" if sweep.repeats else "best"
        found.append((f"{sweep.metric.removeprefix('eval_')}, {which}", decimal(sweep.means[sweep.best.number])))
    states = [trial.state for trial in sweep.trials]
    found.append(("trials done", f"{sum(state in ENDED for state in states)} of {sweep.budget}"))
    found += [
        (name, str(states.count(state)))
        for state, name in (("PRUNED", "ended early"), ("FAILED", "failed"), ("RUNNING", "running"))
        if states.count(state)
    ]
    if budget.saved:
        found.append(("of the epochs saved", f"{100 * budget.share:.0f} %"))
    return found


def _best(data: ReportData, sweep: Sweep) -> Html:
    best = sweep.best
    if best is None:
        return Html("")
    assert best.newest is not None
    facts: list[tuple[Content, Content]] = [("trial", [best.id, " ", pieces.chip(best.state)])]
    facts += [(name.removeprefix("eval_"), decimal(value)) for name, value in best.newest.metrics.items()]
    facts += [(key, shown(value, digits=6)) for key, value in best.point.items()]
    uri = typed(data.summary.uri)
    facts.append(("its job file", tag("code", f"raylift trials {uri} --best > best.yaml")))
    facts.append(("its model", tag("code", f"raylift export {uri} DIR")))
    return pieces.section("Best trial", pieces.facts(facts))


def _curves(data: ReportData, drawing: Drawing, budget: Budget) -> Html:
    if not drawing.charts:
        words = "No trial has been evaluated yet."
        if data.summary.state.is_final:
            words = "No trial was evaluated, or all failed after they were: the table says how."
        return pieces.section("How the search went", tag("p", words, class_="empty"))
    cards = [pieces.chart_card(chart, index) for index, chart in enumerate(drawing.charts)]
    notes = []
    if isinstance(drawing.importance, str):
        cards.append(pieces.card("Parameter importance", tag("p", drawing.importance, class_="empty")))
    else:
        found = drawing.importance
        none = "No key stands out from chance. " if len(found.by_chance) == len(found.shares) else ""
        notes.append(
            f"{none}Importance: by PED-ANOVA, over {found.trials} trials: how far the values of the best of them "
            "differ from those of all. A key is no more than chance where it came as far now and then when the results "
            f"were shuffled, {found.shuffles} times."
        )
    if budget.saved:
        took = f", about {duration(budget.seconds)} of training" if budget.seconds else ""
        of = f"{budget.saved:,} of {budget.saved + budget.trained:,} epochs"
        notes.append(f"Ending trials early saved {of}{took}.")
    return pieces.section(
        "How the search went",
        tag("div", cards, class_="charts"),
        pieces.note(pieces.ENLARGE),
        *(pieces.note(text) for text in notes),
        pieces.without_script(),
    )


def _parallel(drawing: Drawing) -> Html:
    if drawing.parallel is None:
        return Html("")
    room = f"min-width: {_AXIS * len(drawing.parallel.axes)}px"
    left = drawing.parallel.left_out
    best = f"The best {len(drawing.parallel.lines):,} trials are drawn, {left:,} are left out. " if left else ""
    return pieces.section(
        "Parallel coordinates",
        tag("div", tag("div", id="parallel", class_="plot tall", style=room), class_="card scrolls"),
        pieces.note(
            f"{best}A line is a trial: the bluer, the better; the best is orange. Drag over a part of an axis to "
            "keep the trials that cross it there, with Shift over another one too; double-click to go back."
        ),
    )


def _trials(sweep: Sweep) -> Html:
    notes = [f"{sweep.counts()}."]
    if len(sweep.trials) > _TRIALS:
        notes.append(f"The best {_TRIALS} are shown.")
    mean = ["mean"] if sweep.repeats else []
    head = ["trial", "state", "epochs", *mean, sweep.metric.removeprefix("eval_"), "took", *sweep.names.values(), "why"]
    rows = [_trial(trial, sweep) for trial in sweep.ordered[:_TRIALS]]
    return pieces.section("Trials", pieces.note(" ".join(notes)), table(head, rows, class_="listed"))


def _trial(trial: Trial, sweep: Sweep) -> list[Content]:
    value, mean = trial.value(sweep.metric), sweep.means.get(trial.number)
    best = sweep.best is not None and trial.id == sweep.best.id
    return [
        [trial.id, pieces.mark("best") if best else None],
        pieces.chip(trial.state),
        str(trial.epoch or ""),
        *([decimal(mean) if mean is not None else ""] if sweep.repeats else []),
        decimal(value) if value is not None else "",
        duration(trial.trained) if trial.ended is not None else "",
        *(shown(trial.point[key]) if key in trial.point else "–" for key in sweep.names),
        trial.message,
    ]
