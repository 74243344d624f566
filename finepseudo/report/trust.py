"""How far a run's labels and predictions may be trusted: who is taken for whom, and what a confidence is worth.

Axes: N videos, K classes.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from finepseudo import measures
from finepseudo.data.manifest import UNKNOWN
from finepseudo.report.drawing import COLOURS, GREY, SMALL, axes_of, opened, svg, titled
from finepseudo.results import Results
from finepseudo.run import Run

NAMED = 60  # classes up to which the matrix names each
SIDE, CELL = 600.0, 22.0  # of the matrix at most, and of a cell where classes are named
LEVELS = 10  # of darkness
SEEN = 0.005  # share of a class's videos from which a cell is drawn
LETTERS = 16  # of a class's name beside the matrix

Bins = list[tuple[float, float, int]]
"""Mean confidence, share of right labels, and their number, by bin."""


def confusion_plot(run: Run, results: Results) -> str:
    """Of the prediction that the run stands by: of the test videos of each class, the shares given each label."""
    table = run.predictions()
    if not len(table):
        return ""
    return matrix(confusion(table, results.prediction, len(results.classes)), results.classes)


def matrix(share_KK: np.ndarray, names: Sequence[str]) -> str:
    """One path a level of darkness, so that a thousand classes are some hundred kilobytes."""
    count = len(names)
    named = count <= NAMED
    cell = min(CELL, SIDE / count) if named else SIDE / count
    margin = 6.6 * min(LETTERS, max(map(len, names))) + 26 if named else 26
    side = count * cell
    level_KK = np.where(share_KK >= SEEN, np.ceil(np.nan_to_num(share_KK) * LEVELS), 0)
    parts = [f'<g class="cells" transform="translate({margin:.0f} 1) scale({cell:.4g})">']
    for level in range(1, LEVELS + 1):
        cells = "".join(f"M{label} {truth}h1v1h-1z" for truth, label in np.argwhere(level_KK == level).tolist())
        if cells:
            parts.append(f'<path fill-opacity="{level / LEVELS:g}" d="{cells}"/>')
    parts.append(f'</g><rect class="frame" x="{margin:.0f}" y="1" width="{side:.0f}" height="{side:.0f}"/>')
    for number, name in enumerate(names if named else ()):
        short = html.escape(name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…")
        at = (number + 0.5) * cell
        parts.append(f'<text x="{margin - 5:.0f}" y="{at + 5:.1f}" text-anchor="end">{short}</text>')
        x, y = margin + at + 4, side + 7
        parts.append(f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)" text-anchor="end">{short}</text>')
    middle = margin + side / 2
    parts.append(f'<text x="{middle:.0f}" y="{side + margin - 4:.0f}" text-anchor="middle">label</text>')
    parts.append(f'<text transform="translate(11 {side / 2:.0f}) rotate(-90)" text-anchor="middle">true class</text>')
    said = f"Confusion matrix of {count} classes; the most confused pairs are in the table beside it"
    return f"{opened(margin + side + 2, side + margin, said)}{''.join(parts)}</svg>"


def confusion(table: pa.Table, prediction: str, num_classes: int) -> np.ndarray:
    """share_KK, of the true class's videos; NaN for a class without one."""
    truth_N, label_N = (table[name].to_numpy() for name in ("truth", prediction))
    count_KK = np.zeros((num_classes, num_classes))
    np.add.at(count_KK, (truth_N, label_N), 1)
    with np.errstate(invalid="ignore"):
        return count_KK / count_KK.sum(1, keepdims=True)


def reliabilities(run: Run, results: Results) -> dict[str, Bins]:
    """Of the last round of each method, where truth is known: right labels by confidence."""
    manifest, found = run.manifest(), dict[str, Bins]()
    for name in (rounds[-1].name for rounds in results.rounds.values() if rounds):
        table = run.labels(name)
        truth_N = manifest.truth(table["clip"].to_numpy())
        known_N = truth_N != UNKNOWN
        right_N = (truth_N == table["label"].to_numpy())[known_N]
        if len(right_N):
            found[name] = measures.reliability(table["confidence"].to_numpy()[known_N], right_N)
    return found


def reliability_plot(panels: Mapping[str, Mapping[str, Bins]]) -> str:
    """The share of right labels by confidence, a panel each, of one line or of several with titles."""
    if not panels:
        return ""
    drawn, axes = axes_of(len(panels), 2.9)
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for (title, bins), colour in zip(lines.items(), COLOURS, strict=False):
            confidence, share, count = (np.array(column) for column in zip(*bins, strict=True))
            axis.plot(confidence, share, color=colour, linewidth=1.3, label=title)
            axis.scatter(confidence, share, s=4 + 80 * count / count.sum(), color=colour)
        axis.set_xlim(0, 1.03)
        axis.set_ylim(0, 1.03)
        titled(axis, name, "confidence (size: share of the labels)", "right")
        if len(lines) > 1:
            axis.legend(fontsize=SMALL, frameon=False)
    return svg(drawn, "Share of right labels by confidence, beside the line where confidence is that share")
