"""The encoders by name, with the options of each. No torch: a recipe is checked against this table when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from finepseudo.errors import RecipeError
from finepseudo.fields import Count, from_text, nearest

Part = Literal["frame", "video"]  # `frame` is f_A, `video` is f_E
Positions = Literal["none", "sinusoidal"]


@dataclass(frozen=True, kw_only=True)
class VTNOptions:
    dim: Count = 128  # D, width of the embedding
    positions: Positions = "none"
    """Codes of the frames' places. Sinusoidal ones give the lower loss in pre-training and the worse alignment [C]."""


@dataclass(frozen=True, kw_only=True)
class TinyVTNOptions(VTNOptions):
    dim: Count = 64


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options that every f_E has: none."""

    @property
    def time_stride(self) -> int:
        """Frames of the clip for one time feature."""
        return 1


@dataclass(frozen=True, kw_only=True)
class TinyR2Plus1DOptions(VideoOptions):
    dropout: Annotated[float, Interval(ge=0, le=0.9)] = 0.2


@dataclass(frozen=True, kw_only=True)
class R2Plus1D18Options(VideoOptions):
    temporal_stride_1: bool = False
    """The same parameters with temporal strides of 1: T frames give T time features, not T/8 [C]."""

    @property
    def time_stride(self) -> int:
        return 1 if self.temporal_stride_1 else 8


@dataclass(frozen=True)
class Entry:
    part: Part
    options: type
    made_by: str  # its class, as module:Class; constructed with its options, `size` and, for f_E, `num_classes`


ENCODERS: dict[str, Entry] = {
    "tiny_vtn": Entry("frame", TinyVTNOptions, "finepseudo.models.encoders:TinyVTN"),
    "vtn_resnet18": Entry("frame", VTNOptions, "finepseudo.models.encoders:VTNResNet18"),
    "tiny_r2plus1d": Entry("video", TinyR2Plus1DOptions, "finepseudo.models.encoders:TinyR2Plus1D"),
    "r2plus1d_18": Entry("video", R2Plus1D18Options, "finepseudo.models.encoders:R2Plus1D18"),
}


@dataclass(frozen=True)
class Encoder:
    name: str
    options: Any

    @property
    def part(self) -> Part:
        return ENCODERS[self.name].part


def choose(name: str, options: Mapping[str, str] | None = None, *, part: Part | None = None) -> Encoder:
    """The encoder of a name, with options as text; what is not in `options` has its default.

    Raises RecipeError, with the choices: no such encoder, it is of the other part, or an option is wrong.
    """
    names = [other for other, entry in ENCODERS.items() if part in (None, entry.part)]
    if name not in names:
        which = {"frame": " that embeds frames (f_A)", "video": " that classifies clips (f_E)", None: ""}[part]
        raise RecipeError(f"no encoder {name!r}{which}{nearest(name, names)}; the choices are {', '.join(names)}")
    return Encoder(name, from_text(ENCODERS[name].options, options or {}, f"encoder {name!r}"))
