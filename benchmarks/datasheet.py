"""Unit costs of an accelerator that nobody has at hand: by arithmetic, from its data sheet; nothing is measured on it.

    python benchmarks/datasheet.py diving48_5pct --units runs/units.json      # beside measured ones of a CPU

Multiply-adds of the real encoders are counted; a training step takes three times those of its forward pass, four where
layers are computed again. They are divided by a share of the dense rate in the data sheet; the share is a guess, small
since convolutions over time wait for memory. Decoding, plans and labels cost what they cost a core of the CPU whose
unit costs the file has.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from finepseudo.costs.units import fits, read_units, write_units
from finepseudo.errors import FinePseudoError, RecipeError
from finepseudo.models.table import Part
from finepseudo.recipe import Recipe, changed
from finepseudo.recipes import find
from finepseudo.train.initial import random_encoder

NAME, RATE = "H100 SXM", 989e12  # dense bf16, operations a second
CELLS = 0.28e12  # cells of alignment a second at most, docs/performance.md


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to reckon, and where to keep it."""

    recipe: tyro.conf.Positional[str]  # a name of finepseudo/recipes, or file.py:function
    units: Path = Path("runs/units.json")  # has unit costs of a CPU, fp32; those of the accelerator are added
    share: float = 0.1  # of the rates above that a program reaches: a guess


def frame_operations(recipe: Recipe, part: Part, classes: int = 100) -> float:
    """Operations of a forward pass for each frame of a clip; a multiply-add is two."""
    size, how = recipe.frames.crop, recipe.models.encoder(part)
    encoder: Any = random_encoder(how, num_classes=classes, size=size, seed=0).eval()
    frames = recipe.frames.align if part == "frame" else recipe.frames.video
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        encoder(torch.zeros(1, frames, 3, size, size))
    return counted.get_total_flops() / frames


def main(options: Options) -> None:
    """Add the unit costs to the file."""
    recipe, known = find(options.recipe), read_units(options.units)
    measured = fits(changed(recipe, {"optimiser.precision": "fp32"}), "cpu")
    if measured not in known:
        raise RecipeError(f"{options.units} has no unit costs of {measured}; measure them with benchmarks/scale.py")
    parts: tuple[Part, ...] = ("frame", "video")
    operations = {part: frame_operations(recipe, part) for part in parts}
    second = {part: count / (RATE * options.share) for part, count in operations.items()}
    times = {part: 3 + (part in recipe.scale.recompute) for part in parts}
    kinds = known[measured].train_frame_s
    cost = replace(
        known[measured],
        machine=f"an {NAME} (never measured), decoding on {known[measured].machine}",
        source=f"data-sheet arithmetic at {options.share:.0%} of {RATE / 1e12:g} TFLOP/s, which is a guess",
        embed_frame_s=second,
        train_frame_s={kind: times[part] * second[part] for kind in kinds for part in parts if kind.endswith(part)},
        cell_s=1 / (CELLS * options.share),
    )
    known[fits(recipe, "cuda")] = cost
    write_units(options.units, known)
    for part, count in operations.items():
        print(f"{part}: {count / 1e9:.2f}e9 operations a frame, {1 / second[part]:.0f} frames a second at most")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except FinePseudoError as error:
        sys.exit(f"{type(error).__name__}: {error}")
