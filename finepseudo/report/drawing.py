"""Figures of the page: matplotlib's, as SVG that stands in HTML and takes its colours from the page's theme."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = ("#4c6e91", "#c8743a", "#5b8c5a", "#a05195", "#6f7780", "#a88414")
GREY, FAINT = "#888888", "#c9d3de"
VARIABLES = {"#000000": "--ink", GREY: "--soft", FAINT: "--faint"}
VARIABLES |= {colour: f"--c{number}" for number, colour in enumerate(COLOURS)}
"""Of theme.css, by the colour that stands for each while matplotlib draws."""

SMALL, LARGE = 8.5, 9.5  # of texts, in points


def svg(drawn: Figure, said: str) -> str:
    """Inline SVG with what it shows in words, without an address, a style or a name that others may have.

    A policy may then refuse inline styles; light and dark are the page's. Equal figures give equal bytes.
    """
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": said}):
        drawn.savefig(
            sink, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = sink.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s*<defs>\s*</defs>|(?<=<g) id="[^"]*"', "", text)
    text = re.sub(r'style="([^"]*)"', lambda found: _attributes(found[1]), text)
    size = re.search(r'viewBox="0 0 (\S+) (\S+)"', text)
    assert size is not None, "matplotlib gives a picture its size"
    return opened(float(size[1]), float(size[2]), said, points=True) + text.partition(">")[2]


def opened(width: float, height: float, said: str, *, points: bool = False) -> str:
    """The first element of a picture, which says what it shows; a point is 4/3 of a pixel."""
    shown = width * 4 / 3 if points else width
    size = f'viewBox="0 0 {width:.6g} {height:.6g}" width="{shown:.0f}"'
    return f'<svg class="plot" {size} role="img" aria-label="{html.escape(said)}">'


def axes_of(count: int, height: float) -> tuple[Figure, Sequence[Any]]:
    """A figure of so many panels, three in a row of that height in inches; panels without a use are not seen."""
    rows = -(-count // 3)
    drawn = Figure(figsize=(10, height * rows))
    axes = [drawn.add_subplot(rows, 3, index + 1) for index in range(max(3, count))]
    for number, axis in enumerate(axes):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=SMALL)
        axis.set_visible(number < count)
    drawn.subplots_adjust(hspace=0.6, wspace=0.3)
    return drawn, axes


def titled(axis: Any, title: str, x: str = "", y: str = "") -> None:
    """Name a panel and its axes; texts are texts, whatever they hold."""
    axis.set_title(title, fontsize=LARGE, parse_math=False)
    axis.set_xlabel(x, fontsize=SMALL)
    axis.set_ylabel(y, fontsize=SMALL)


def _attributes(style: str) -> str:
    themed = ((name, f"var({VARIABLES[value]})" if value in VARIABLES else value) for name, value in _declared(style))
    return " ".join(f'{name}="{value}"' for name, value in themed)


def _declared(style: str) -> Iterator[tuple[str, str]]:
    for part in style.split(";"):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name and name != "font-family":
            yield name, value
