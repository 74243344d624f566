"""How far a run's labels and predictions may be trusted: who is taken for whom, and what a confidence is worth.

Axes: N videos, K classes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from matplotlib.patches import Rectangle

from finepseudo import measures
from finepseudo.data.manifest import UNKNOWN
from finepseudo.report.drawing import COLOURS, axes_of, svg
from finepseudo.results import Results
from finepseudo.run import Run

DARK = (0.10, 0.22, 0.40)
NAMED = 60  # classes up to which the matrix names each


def confusion_plot(run: Run, results: Results) -> str:
    """Of the prediction that the run stands by: of the test videos of each class, the shares given each label."""
    table = run.predictions()
    if not len(table):
        return ""
    share_KK = confusion(table, results.prediction, len(results.classes))
    count = len(share_KK)
    side = 2.0 + 0.22 * min(count, NAMED)
    drawn, (axis,) = axes_of(side, side)
    for truth, label in np.argwhere(share_KK > 0).tolist():  # as areas: a picture in SVG has an address
        share = share_KK[truth, label]
        axis.add_patch(Rectangle((label - 0.5, truth - 0.5), 1, 1, facecolor=(*DARK, share), linewidth=0))
    axis.set_xlim(-0.5, count - 0.5)
    axis.set_ylim(count - 0.5, -0.5)
    axis.set_xlabel("label", fontsize=7)
    axis.set_ylabel("true class", fontsize=7)
    axis.set_xticks([])
    axis.set_yticks([])
    if count <= NAMED:
        axis.set_xticks(range(count), results.classes, rotation=90, fontsize=6, parse_math=False)
        axis.set_yticks(range(count), results.classes, fontsize=6, parse_math=False)
    return svg(drawn)


def confusion(table: pa.Table, prediction: str, num_classes: int) -> np.ndarray:
    """share_KK, of the true class's videos; NaN for a class without one."""
    truth_N, label_N = (table[name].to_numpy() for name in ("truth", prediction))
    count_KK = np.zeros((num_classes, num_classes))
    np.add.at(count_KK, (truth_N, label_N), 1)
    with np.errstate(invalid="ignore"):
        return count_KK / count_KK.sum(1, keepdims=True)


def reliability_plot(run: Run, results: Results) -> str:
    """Of the last round of each method, where truth is known: the share of right labels by confidence."""
    last = [rounds[-1].name for rounds in results.rounds.values() if rounds]
    if not last:
        return ""
    manifest, found = run.manifest(), dict[str, list[tuple[float, float, int]]]()
    for name in last:
        table = run.labels(name)
        truth_N = manifest.truth(table["clip"].to_numpy())
        known_N = truth_N != UNKNOWN
        right_N = (truth_N == table["label"].to_numpy())[known_N]
        if len(right_N):
            found[name] = measures.reliability(table["confidence"].to_numpy()[known_N], right_N)
    if not found:
        return ""
    drawn, axes = axes_of(10, 2.9 * -(-len(found) // 3), max(3, len(found)), 3)
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    for axis, (name, bins) in zip(axes, found.items(), strict=False):
        confidence, share, count = (np.array(column) for column in zip(*bins, strict=True))
        axis.plot([0, 1], [0, 1], color="#888888", linestyle=":", linewidth=1)
        axis.plot(confidence, share, color=COLOURS[0], linewidth=1.3)
        axis.scatter(confidence, share, s=4 + 80 * count / count.sum(), color=COLOURS[0])
        axis.set_xlim(0, 1.03)
        axis.set_ylim(0, 1.03)
        axis.set_title(name, fontsize=8, parse_math=False)
        axis.set_xlabel("confidence (size: share of the labels)", fontsize=7)
        axis.set_ylabel("right", fontsize=7)
    return svg(drawn)
