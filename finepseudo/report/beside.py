"""Runs side by side: one page of their figures, classes and curves, and of what differs in their recipes.

Axes: N test videos that two runs have.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from finepseudo.recipe import described
from finepseudo.report.document import document
from finepseudo.report.drawing import COLOURS
from finepseudo.report.page import SCRIPTS, STYLES
from finepseudo.report.plots import last_rounds_plot, learning_lines, learning_plot
from finepseudo.report.trust import reliabilities, reliability_plot
from finepseudo.report.words import figure, shared, short
from finepseudo.results import STAGE_2, Results, gain
from finepseudo.run import Run
from finepseudo.storage.tables import pc

TITLES = {
    "runs": "The runs",
    "recipes": "What differs in their recipes",
    "accuracy": "Top-1 on the test videos",
    "labels": "Pseudo-labels of the last round",
    "classes": "Class by class",
    "curves": "Learning curves",
}
MOST = len(COLOURS)  # runs: each has a colour of its own
PARTS = ("f_E", "fused", "p_A")

Found = Mapping[str, tuple[Run, Results]]
"""Runs by their letters."""


def side_by_side(runs: Sequence[Run]) -> str:
    """The page of two runs or more, at most MOST.

    Raises ArtefactError: one of them has no results, or lacks something that they come from.
    """
    found = {letter: (run, run.results()) for letter, run in zip(string.ascii_uppercase, runs, strict=False)}
    return document(
        "report/beside.html.jinja",
        scripts=SCRIPTS,
        styles=STYLES,
        titles=TITLES,
        sections=list(TITLES.items()),
        letters=[*found],
        runs=[_run_row(letter, run, results) for letter, (run, results) in found.items()],
        recipes=_recipe_rows(found),
        accuracy=_accuracy_rows(found),
        labels=_label_rows(found),
        quality=last_rounds_plot({letter: _last(results) for letter, (_, results) in found.items()}),
        reliability=reliability_plot(_panels({letter: reliabilities(*of) for letter, of in found.items()})),
        classes=_class_rows(found),
        curves=learning_plot(
            _panels({letter: learning_lines(*of) for letter, of in found.items()}), "Loss by step, run by run"
        ),
    )


def _run_row(letter: str, run: Run, results: Results) -> dict[str, Any]:
    split = results.split
    return {
        "": letter,
        "run": run.store.uri(),
        "recipe": f"{results.recipe.name} {results.recipe.digest}",
        "manifest": results.manifest.fingerprint,
        "split": f"{split.fingerprint}, seed {split.seed}",
        "labelled": split.labelled,
        "unlabelled": split.unlabelled,
        "stands by": results.prediction,
    }


def _recipe_rows(found: Found) -> list[dict[str, str]]:
    flat = {letter: dict(_flat(described(run.recipe()))) for letter, (run, _) in found.items()}
    names = dict.fromkeys(name for fields in flat.values() for name in fields)
    told = ({"field": name, **{letter: fields.get(name, "-") for letter, fields in flat.items()}} for name in names)
    return [row for row in told if len({row[letter] for letter in flat}) > 1]


def _flat(body: Mapping[str, Any], above: str = "") -> Sequence[tuple[str, str]]:
    fields: list[tuple[str, str]] = []
    for name, value in body.items():
        nested = isinstance(value, Mapping)
        fields += _flat(value, f"{above}{name}.") if nested else [(f"{above}{name}", json.dumps(value))]
    return fields


def _accuracy_rows(found: Found) -> list[dict[str, str]]:
    """A row a method and part; differences are over the test videos that both runs have, paired."""
    predictions = {letter: _predicted(run, results) for letter, (run, results) in found.items()}
    first, *others = found
    rows: list[dict[str, str]] = []
    for method in dict.fromkeys(name for _, results in found.values() for name in results.measured):
        for part in PARTS:
            top1 = {
                letter: figure(of.top1) if (of := getattr(results.measured.get(method), part, None)) else "-"
                for letter, (_, results) in found.items()
            }
            if {*top1.values()} == {"-"}:
                continue
            name = f"{'after stage 2' if method == STAGE_2 else method}, {part}"
            key = f"{method}/{part}"
            gains = {f"{other} − {first}": _gain(predictions[other], predictions[first], key) for other in others}
            rows.append({"method": name, **top1, **gains})
    return rows


def _predicted(run: Run, results: Results) -> pa.Table:
    """The predictions with classes by their names, since runs may number them otherwise."""
    table, names = run.predictions(), pa.array(results.classes, pa.string())
    columns = [table[name] if name == "video_id" else _named(table[name], names) for name in table.column_names]
    return pa.table(columns, table.column_names)


def _named(column: Any, names: Any) -> Any:
    return names.take(column.combine_chunks())


def _gain(ours: pa.Table, theirs: pa.Table, key: str) -> str:
    if key not in ours.column_names or key not in theirs.column_names:
        return "-"
    place = pc.index_in(ours["video_id"], theirs["video_id"])
    both = pa.table([ours[key], ours["truth"], place], ["ours", "truth", "place"]).drop_null()
    if not len(both):
        return "no test video in common"
    truth_N, ours_N = (both[name].to_numpy(zero_copy_only=False) for name in ("truth", "ours"))
    theirs_N = pc.take(theirs[key], both["place"]).to_numpy(zero_copy_only=False)
    return figure(gain(ours_N, theirs_N, truth_N), "+")


def _last(results: Results) -> list[Any]:
    return [rounds[-1] for rounds in results.rounds.values() if rounds]


def _label_rows(found: Found) -> list[dict[str, Any]]:
    return [
        {
            "run": letter,
            "round": one.name,
            "accepted": f"{one.quality.accepted} of {one.quality.unlabelled}",
            "share": shared(one.quality.coverage, one.quality.unlabelled),
            **{f"{key} right": figure(one.quality.precision_accepted[key]) for key in ("p_E", "p_A", "p")},
            "calibration error": short(one.quality.calibration_error),
        }
        for letter, (_, results) in found.items()
        for one in _last(results)
    ]


def _class_rows(found: Found) -> list[dict[str, Any]]:
    """Accuracy of what each run stands by, and differences to the first run."""
    first, *others = found
    right = {letter: _by_class(results) for letter, (_, results) in found.items()}
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(name for classes in right.values() for name in classes):
        share = {letter: classes.get(name) for letter, classes in right.items()}
        row: dict[str, Any] = {"class": name, **{letter: short(value) for letter, value in share.items()}}
        rows.append(row | {f"{other} − {first}": _less(share[other], share[first]) for other in others})
    return rows


def _less(ours: float | None, theirs: float | None) -> str:
    return "-" if ours is None or theirs is None else short(ours - theirs, "+")


def _by_class(results: Results) -> dict[str, float | None]:
    method, part = results.prediction.split("/")
    found = getattr(results.measured.get(method), part, None)
    return dict(zip(results.classes, found.per_class, strict=True)) if found else dict.fromkeys(results.classes)


def _panels(lines: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By panel and run, of those by run and panel."""
    names = dict.fromkeys(name for theirs in lines.values() for name in theirs)
    return {name: {letter: theirs[name] for letter, theirs in lines.items() if name in theirs} for name in names}
