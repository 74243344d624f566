"""Unit costs: seconds of one worker for one piece of work, by encoders, pixels, files and device; and their source.

units.json holds some, each with what it was measured on or reckoned from; benchmarks/scale.py --measure makes more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from finepseudo.errors import RecipeError
from finepseudo.models.table import Part
from finepseudo.recipe import Recipe

SHIPPED = Path(__file__).with_name("units.json")


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """Seconds of one worker for one piece of work, with one recipe's encoders and sizes."""

    machine: str  # a worker is one core of it, or its accelerator
    source: str  # measured, and how; or reckoned, and from what
    video_frames: float  # of a video: what the cache of decoded videos keeps
    decode_kept_s: float  # decode a whole video and keep it in the cache
    decode_once_s: float  # decode the frames of one row; the cache is off
    decode_hit_s: float  # take one row from the cache
    embed_frame_s: Mapping[str, float]  # by part, `frame` (f_A) or `video` (f_E): forward, a frame of a clip
    cell_s: float  # score a video with a gallery member: a cell of the T x T cost matrix
    train_frame_s: Mapping[str, float]  # by kind: batch, forward, backward, optimiser, a frame of a clip
    plan_row_s: float
    """Make a row of a plan when it is asked for. Decoding actors pay it beside decoding, and training workers as a part
    of their batch: it is in `train_frame_s`."""
    fusion_class_s: float  # the driver's, a judged video and class: the fusion of two nets
    label_class_s: float  # the driver's, a video and class: probabilities, decision, table
    launch_s: float = 26.0  # start a training's workers, set them up, end them; not measured, typical of two cores
    pool_s: float = 7.0  # start a pass of the pool; the same

    def of_length(self, video_frames: float) -> UnitCosts:
        """For videos of another length: they are decoded in proportion to their frames; a row from the cache is not."""
        ratio = video_frames / self.video_frames
        return replace(
            self,
            video_frames=video_frames,
            decode_kept_s=ratio * self.decode_kept_s,
            decode_once_s=ratio * self.decode_once_s,
        )


Known = Mapping[str, UnitCosts]
"""Unit costs by what they fit."""


def known_units(path: Path | None = None) -> dict[str, UnitCosts]:
    """Unit costs that the package brings, and those of a file, which win.

    Raises RecipeError: it is another kind of file.
    """
    return read_units(SHIPPED) | (read_units(path) if path else {})


def write_units(path: Path, known: Known) -> None:
    """A file that `read_units` reads."""
    path.write_text(json.dumps({name: asdict(costs) for name, costs in known.items()}, indent=1))


def read_units(path: Path) -> dict[str, UnitCosts]:
    """Unit costs as `write_units` wrote them; none where there is no file.

    Raises RecipeError: it is another kind of file.
    """
    if not path.exists():
        return {}
    try:
        return {name: UnitCosts(**costs) for name, costs in json.loads(path.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RecipeError(f"{path}: no file of unit costs ({error}); make it anew with benchmarks/scale.py") from None


def fits(recipe: Recipe, device: str) -> str:
    """What unit costs are tied to: encoders, pixels, the kind of the files, precision, and the device, cpu or cuda."""
    spec, frames = recipe.data.rehearsal, recipe.frames
    files = f"generated files of {spec.size} px" if spec else "other files"
    sides = f"{frames.crop} px of {frames.height}x{frames.width}"
    encoders = f"{_encoder(recipe, 'frame')} and {_encoder(recipe, 'video')}"
    return f"{encoders}, {sides}, {files}, {recipe.optimiser.precision}, {device}"


def _encoder(recipe: Recipe, part: Part) -> str:
    options = getattr(recipe.models, f"{part}_options")
    again = ["recomputed"] * (part in recipe.scale.recompute)
    said = ", ".join([*(f"{name} {value}" for name, value in sorted(options.items())), *again])
    return getattr(recipe.models, part) + (f" ({said})" if said else "")


def units_for(recipe: Recipe, known: Known) -> UnitCosts:
    """Unit costs for the encoders, sizes and devices of the recipe.

    Raises RecipeError: there are none.
    """
    devices = ("cuda" if gpus else "cpu" for gpus in (recipe.scale.train_gpus, recipe.scale.score_gpus))
    names = [fits(recipe, device) for device in devices]
    if lacking := [name for name in names if name not in known]:
        raise RecipeError(f"no unit costs of {lacking[0]}; measure them: benchmarks/scale.py --measure")
    train, score = (known[name] for name in names)
    return replace(train, embed_frame_s=score.embed_frame_s, cell_s=score.cell_s)
