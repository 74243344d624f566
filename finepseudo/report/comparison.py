"""Figures of several label seeds side by side: means, spread, and differences seed by seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from finepseudo.recipe import METHODS
from finepseudo.results import Results

PARTS = ("f_E", "fused", "p_A")
AGAINST = (
    *(("finepseudo", "f_E", method, "f_E") for method, traits in METHODS.items() if traits.baseline),
    ("finepseudo", "fused", "pseudo_align", "fused"),
)
"""Pairs of figures whose difference is taken seed by seed."""


@dataclass(frozen=True)
class Spread:
    """One figure over the seeds."""

    mean: float
    se: float | None  # standard error of the mean; None for one seed
    by_seed: list[float]


@dataclass(frozen=True)
class Comparison:
    """Several runs that differ in the seed of their labels."""

    seeds: list[int]
    top1: dict[str, dict[str, Spread]]
    """By method, and of f_E, fused and p_A."""
    differences: dict[str, Spread]

    def to_json(self) -> bytes:
        """For compare.json."""
        return json.dumps(asdict(self), indent=1).encode()

    def table(self) -> str:
        """What a comparison prints."""
        head = "  ".join(f"seed {seed:<3}" for seed in self.seeds)
        lines = ["top-1 on the test videos", f"{'':42}{head}  mean   s.e."]
        for name, parts in self.top1.items():
            lines += [_line(f"{name}, {part}", figures) for part, figures in parts.items()]
        lines += ["", "differences, seed by seed"]
        lines += [_line(name, figures, sign="+") for name, figures in self.differences.items()]
        return "\n".join(lines)


def compare(results: Mapping[int, Results]) -> Comparison:
    """Top-1 of every method by seed, with mean and standard error over seeds, and paired differences."""
    seeds = sorted(results)
    top1 = {
        name: {
            part: spread([getattr(results[seed].measured[name], part).top1.value for seed in seeds]) for part in PARTS
        }
        for name in results[seeds[0]].measured
    }
    differences: dict[str, Spread] = {}
    for name, part, other, other_part in AGAINST:
        if name in top1 and other in top1:
            pairs = zip(top1[name][part].by_seed, top1[other][other_part].by_seed, strict=True)
            differences[f"{name} {part} - {other} {other_part}"] = spread([a - b for a, b in pairs])
    return Comparison(seeds, top1, differences)


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard error of the mean, and the values."""
    mean = sum(values) / len(values)
    se = None
    if len(values) > 1:
        se = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return Spread(mean, se, list(values))


def _line(name: str, figures: Spread, sign: str = "") -> str:
    values = "  ".join(f"{value:{sign}.3f}   " for value in figures.by_seed)
    se = "  -" if figures.se is None else f"{figures.se:.3f}"
    return f"{name:<42}{values}  {figures.mean:{sign}.3f}  {se}"
