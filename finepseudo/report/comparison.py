"""Figures of several label seeds side by side: means, spread, and differences seed by seed. Only light imports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finepseudo.recipe import METHODS

PARTS = ("f_E", "fused")
AGAINST = (
    *(("finepseudo", "f_E", method, "f_E") for method, traits in METHODS.items() if traits.baseline),
    ("finepseudo", "fused", "pseudo_align", "fused"),
)
"""Pairs of figures whose difference is taken seed by seed."""


def compare(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Top-1 of every method by seed, with mean and standard error over seeds, and paired differences."""
    seeds = sorted(results)
    methods = [name for name, body in results[seeds[0]].items() if isinstance(body, Mapping) and "f_E" in body]
    top1 = {
        name: {part: spread([results[seed][name][part]["top1"] for seed in seeds]) for part in (*PARTS, "p_A")}
        for name in methods
        if all(part in results[seeds[0]][name] for part in PARTS)
    }
    differences = {}
    for name, part, other, other_part in AGAINST:
        if name in top1 and other in top1:
            pairs = zip(top1[name][part]["by_seed"], top1[other][other_part]["by_seed"], strict=True)
            differences[f"{name} {part} - {other} {other_part}"] = spread([a - b for a, b in pairs])
    return {"seeds": seeds, "top1": top1, "differences": differences}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error of the mean (None for one value), and the values."""
    mean = sum(values) / len(values)
    se = None
    if len(values) > 1:
        se = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return {"mean": mean, "se": se, "by_seed": list(values)}


def table(body: Mapping[str, Any]) -> str:
    """What a comparison prints."""
    head = "  ".join(f"seed {seed:<3}" for seed in body["seeds"])
    lines = ["top-1 on the test videos", f"{'':42}{head}  mean   s.e."]
    for name, parts in body["top1"].items():
        lines += [_line(f"{name}, {part}", figures) for part, figures in parts.items()]
    lines += ["", "differences, seed by seed"]
    lines += [_line(name, figures, sign="+") for name, figures in body["differences"].items()]
    return "\n".join(lines)


def _line(name: str, figures: Mapping[str, Any], sign: str = "") -> str:
    values = "  ".join(f"{value:{sign}.3f}   " for value in figures["by_seed"])
    se = "  -" if figures["se"] is None else f"{figures['se']:.3f}"
    return f"{name:<42}{values}  {figures['mean']:{sign}.3f}  {se}"
