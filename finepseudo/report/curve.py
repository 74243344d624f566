"""The label-budget curve as one SVG file that needs nothing but itself."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping

from finepseudo.recipe import METHODS
from finepseudo.report.comparison import OURS, Comparison, Spread
from finepseudo.report.drawing import COLOURS

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 520, 20, 370  # of the axes
LINES = (*COLOURS, "#2b9e9e", "#7a4b2a", "#d45087")
STEP = 0.1  # between two ticks of top-1


def budget_curve(budgets: Mapping[float, Comparison]) -> str:
    """Top-1 against the share of labels, on a logarithmic axis, with one standard error over the seeds each way."""
    lines = {
        title: points
        for title, name, part in (*((method, method, "f_E") for method in METHODS), (f"{OURS}, fused", OURS, "fused"))
        if (points := {share: of.top1[name][part] for share, of in budgets.items() if name in of.top1})
    }
    lowest = min((one.mean - (one.se or 0) for points in lines.values() for one in points.values()), default=0.0)
    low = max(0.0, math.floor(lowest / STEP + 1e-9) * STEP)
    first, last = math.log(min(budgets)), math.log(max(budgets))

    def x(share: float) -> float:
        return (
            (LEFT + RIGHT) / 2 if first == last else LEFT + (RIGHT - LEFT) * (math.log(share) - first) / (last - first)
        )

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (min(max(value, low), 1) - low) / (1 - low)

    parts = [_line(LEFT, BOTTOM, RIGHT, BOTTOM), _line(LEFT, TOP, LEFT, BOTTOM)]
    for tick in range(round(low / STEP), round(1 / STEP) + 1):
        at = y(tick * STEP)
        parts += [_line(LEFT, at, RIGHT, at, "#dddddd"), _text(LEFT - 8, at + 4, f"{tick * STEP:.1f}", "end")]
    for share in budgets:
        parts.append(_text(x(share), BOTTOM + 18, f"{100 * share:g} %", "middle"))
    parts.append(
        _text((LEFT + RIGHT) / 2, BOTTOM + 38, "videos with a label; top-1 of f_E ± s.e. over seeds", "middle")
    )
    for number, (title, points) in enumerate(lines.items()):
        parts += _curve(points, x, y, LINES[number % len(LINES)])
        parts.append(_line(RIGHT + 20, TOP + 22 * number, RIGHT + 44, TOP + 22 * number, LINES[number % len(LINES)], 2))
        parts.append(_text(RIGHT + 52, TOP + 22 * number + 4, title, "start"))
    style = 'font-family="system-ui, sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *parts, "</svg>\n"])


def _curve(
    points: Mapping[float, Spread], x: Callable[[float], float], y: Callable[[float], float], colour: str
) -> list[str]:
    path = " ".join(f"{x(share):.1f},{y(one.mean):.1f}" for share, one in points.items())
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for share, one in points.items():
        se = one.se or 0.0
        parts.append(_line(x(share), y(one.mean - se), x(share), y(one.mean + se), colour))
        parts.append(f'<circle cx="{x(share):.1f}" cy="{y(one.mean):.1f}" r="3" fill="{colour}"/>')
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#888888", width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
