"""Class by class: what a run gets right, and which classes it takes for each other."""

from __future__ import annotations

from typing import Any

from finepseudo import measures
from finepseudo.report.words import short
from finepseudo.results import Results
from finepseudo.run import Run

CONFUSED = 6  # pairs of classes that the page shows of each prediction


def class_rows(run: Run, results: Results) -> list[dict[str, Any]]:
    """One row a class: accuracy by method, and what became of its pseudo-labels in finepseudo's last round."""
    shown = (("supervised", "f_E"), ("finepseudo", "f_E"), ("finepseudo", "fused"))
    columns = {
        f"{name} {part}": getattr(results.measured[name], part).per_class
        for name, part in shown
        if name in results.measured
    }
    count_K = measures.class_counts(run.predictions()["truth"].to_numpy(), len(results.classes)).tolist()
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(results.classes):
        row: dict[str, Any] = {"class": name, "test videos": count_K[index]}
        row |= {title: short(values[index]) for title, values in columns.items()}
        if rounds := results.rounds.get("finepseudo"):
            last = rounds[-1].quality
            known, right = last.known_per_class[index], last.right_per_class[index]
            row |= {"accepted as it": last.accepted_per_class[index]}
            row |= {"of these right": short(right / known if known else None)}
        rows.append(row)
    return rows


def confused_rows(results: Results) -> list[dict[str, Any]]:
    """The pairs of classes that finepseudo, or else the last method measured, takes for each other most often."""
    if not results.measured:
        return []
    name = "finepseudo" if "finepseudo" in results.measured else list(results.measured)[-1]
    return [
        {
            "prediction": f"{name} {part}",
            "true class": results.classes[one.truth],
            "taken for": results.classes[one.label],
            "videos": one.videos,
            "share": short(one.share),
        }
        for part in ("f_E", "fused")
        if (found := getattr(results.measured[name], part)) is not None
        for one in found.confused[:CONFUSED]
    ]
