"""Curves: what trainings lost, and how precision falls as coverage grows; of one run, or of several in one panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finepseudo.report.drawing import COLOURS, FAINT, GREY, SMALL, axes_of, svg, titled
from finepseudo.results import Results, RoundResult
from finepseudo.run import Run, training

POINTS = 400  # of a curve: what a panel can show

Lines = Mapping[str, np.ndarray]
"""A panel: two rows, x and y, by the line's title; a panel of one line needs no legend."""


def learning_lines(run: Run, results: Results) -> dict[str, np.ndarray]:
    """Steps and losses of each training, thinned to the means of equal stretches."""
    names = [folder.removeprefix(training("")) for folder in results.timing if folder.startswith(training(""))]
    curves = ((name, run.curve(name)) for name in names)
    return {name: _thinned(np.array([[p["step"], p["loss"]] for p in curve]).T) for name, curve in curves if curve}


def learning_plot(panels: Mapping[str, Lines], said: str) -> str:
    """Loss by step, and its running mean."""
    if not panels:
        return ""
    drawn, axes = axes_of(len(panels), 2.0)
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        for (title, (steps, loss)), colour in zip(lines.items(), COLOURS, strict=False):
            width = max(1, len(loss) // 40)
            smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
            if len(lines) == 1:
                axis.plot(steps, loss, color=FAINT, linewidth=0.6)
            axis.plot(steps[width - 1 :], smooth, color=colour, linewidth=1.3, label=title)
        every = np.concatenate([loss for _, loss in lines.values()])
        axis.set_ylim(min(0.0, float(every.min())), float(np.quantile(every, 0.99)) * 1.1 or None)
        titled(axis, name)
        _legend(axis, lines)
    return svg(drawn, said)


def quality_plot(results: Results) -> str:
    """Precision against coverage of each round's labels, by p, p_E and p_A."""
    rounds = [one for one in results.all_rounds() if one.quality.curves]
    if not rounds:
        return ""
    drawn, axes = axes_of(len(rounds), 2.6)
    for axis, one in zip(axes, rounds, strict=False):
        # p lies below, and wide: some methods have p = p_E or p = p_A
        for name, colour, width in (("p", FAINT, 5), ("p_E", COLOURS[0], 1.3), ("p_A", COLOURS[1], 1.3)):
            curve = one.quality.curves[name]
            axis.plot(curve.coverage, curve.precision, label=name, color=colour, linewidth=width)
        axis.axvline(one.quality.coverage, color=GREY, linestyle=":", linewidth=1)
        titled(axis, one.name, "coverage (dotted: accepted)", "precision")
        axis.legend(fontsize=SMALL, frameon=False)
    return svg(drawn, "Precision against coverage of the pseudo-labels of each round")


def last_rounds_plot(rounds: Mapping[str, Sequence[RoundResult]]) -> str:
    """The last rounds of several runs, by title: precision against coverage of p, a panel a method."""
    panels: dict[str, dict[str, Any]] = {}
    for title, theirs in rounds.items():
        for one in theirs:
            if one.quality.curves:
                panels.setdefault(one.name.partition("/")[0], {})[title] = one.quality.curves["p"]
    if not panels:
        return ""
    drawn, axes = axes_of(len(panels), 2.6)
    for axis, (method, lines) in zip(axes, panels.items(), strict=False):
        for (title, curve), colour in zip(lines.items(), COLOURS, strict=False):
            axis.plot(curve.coverage, curve.precision, label=title, color=colour, linewidth=1.3)
        titled(axis, f"{method}, last round", "coverage", "precision of p")
        _legend(axis, lines)
    return svg(drawn, "Precision against coverage of the last round's pseudo-labels, run by run")


def _legend(axis: Any, lines: Lines) -> None:
    if len(lines) > 1:
        axis.legend(fontsize=SMALL, frameon=False)


def _thinned(curve_2N: np.ndarray) -> np.ndarray:
    parts = np.array_split(curve_2N, min(POINTS, curve_2N.shape[1]), axis=1)
    return np.stack([part.mean(1) for part in parts], axis=1)
