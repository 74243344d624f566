"""The run page: report.html, one file that needs nothing but itself, however many clips the run has."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from finepseudo.errors import FinePseudoError
from finepseudo.recipe import described
from finepseudo.report.answers import bought
from finepseudo.report.classes import class_rows, confused_rows
from finepseudo.report.document import document
from finepseudo.report.examples import choose_examples
from finepseudo.report.figures import (
    frame_rows,
    gain_sentences,
    label_sentence,
    method_rows,
    open_world_rows,
    order_sentence,
    pair_rows,
    prediction_sentence,
    round_row,
)
from finepseudo.report.lineage import lineage, origin_rows
from finepseudo.report.plots import learning_lines, learning_plot, quality_plot
from finepseudo.report.quarantine import left_out, rejected
from finepseudo.report.summary import summary
from finepseudo.report.times import KINDS, passes, training_rows
from finepseudo.report.trust import confusion_plot, reliabilities, reliability_plot
from finepseudo.run import REPORT, Run

FUSED = {
    "product": "p_E and p_A multiplied, each weighed by what is estimated of it",
    "mean": "the mean of p_E and p_A",
}
SCRIPTS = ("report/player.js", "report/page.js")
STYLES = ("report/theme.css", "report/page.css")

TITLES = {
    "accuracy": "Accuracy on the test videos",
    "pairs": "Are two held-out clips the same action?",
    "frames": "Do frames of one moment lie together?",
    "labels": "Pseudo-labels",
    "answers": "What each answer bought",
    "examples": "Examples",
    "classes": "Classes",
    "curves": "Learning curves",
    "quarantine": "What was left out",
    "time": "Where the time went",
    "lineage": "What was made from what",
}
"""Of the sections, in their order."""

T = TypeVar("T")


def write_report(run: Run) -> str:
    """Write report.html into the run; its address.

    Raises ArtefactError: the run has no results.
    """
    run.store.write(REPORT, report(run).encode())
    return run.store.uri(REPORT)


def report(run: Run) -> str:
    """The page. Raises ArtefactError: the run has no results."""
    results = run.results()
    # Videos, labels and the run that asked may have moved since; the figures are still there.
    parts = {
        "examples": _tried(lambda: choose_examples(run, results), []),
        "answers": _tried(lambda: bought(run), []),
        "reliability": _tried(lambda: reliability_plot(_alone(reliabilities(run, results))), ""),
        "confusion": _tried(lambda: confusion_plot(run, results), ""),
        "lineage": _tried(lambda: origin_rows(lineage(run, results), results), []),
        "rejected": _tried(lambda: rejected(run), None),
        "left_out": _tried(lambda: left_out(run, results), []),
    }
    why = {name: reason for name, (_, reason) in parts.items()}
    figures = {
        "pairs": pair_rows(results),
        "frames": frame_rows(results),
        "curves": learning_plot(_alone(learning_lines(run, results)), "Loss by step of each training"),
        **{name: made for name, (made, _) in parts.items()},
    }
    shown = [id for id in TITLES if figures.get(id, True) or why.get(id)]
    return document(
        "report/page.html.jinja",
        scripts=SCRIPTS,
        styles=STYLES,
        titles=TITLES,
        sections=[(id, TITLES[id]) for id in shown],
        results=results,
        headline=[
            order_sentence(results),
            *label_sentence(results),
            *gain_sentences(results),
            *prediction_sentence(results),
        ],
        methods=method_rows(results),
        fused=FUSED[run.recipe().label.fusion],
        rounds=[round_row(one) for one in results.all_rounds()],
        quality=quality_plot(results),
        open_world=open_world_rows(results.all_rounds()),
        classes=class_rows(run, results),
        confused=confused_rows(results),
        kinds=KINDS,
        trainings=training_rows(results),
        passes=passes(results),
        recipe=json.dumps(described(run.recipe()), indent=1),
        summary=summary(results),
        why=why,
        **figures,
    )


def _alone(lines: dict[str, T]) -> dict[str, dict[str, T]]:
    """Panels of one line each, which needs no title."""
    return {name: {"": line} for name, line in lines.items()}


def _tried(make: Callable[[], T], nothing: T) -> tuple[T, str]:
    """What is made, and no reason; or nothing, and why."""
    try:
        return make(), ""
    except (FinePseudoError, FileNotFoundError) as error:
        return nothing, str(error)
