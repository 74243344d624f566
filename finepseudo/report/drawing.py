"""Figures of the page: matplotlib's, as SVG that stands in HTML and needs nothing but itself."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = ("#4c6e91", "#c8743a", "#5b8c5a", "#a05195", "#8a8a8a", "#c9a227")


def svg(drawn: Figure) -> str:
    """Inline SVG without a single address in it: HTML needs no name spaces. Equal figures give equal bytes."""
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "finepseudo"}):
        drawn.savefig(sink, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    head, end, rest = text.partition(">")
    return re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", head) + end + rest


def axes_of(width: float, height: float, count: int = 1, columns: int = 1) -> tuple[Figure, Sequence[Any]]:
    """A figure of so many axes, in inches."""
    drawn = Figure(figsize=(width, height))
    rows = -(-count // columns)
    axes = [drawn.add_subplot(rows, columns, index + 1) for index in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    drawn.subplots_adjust(hspace=0.75, wspace=0.3)
    return drawn, axes
