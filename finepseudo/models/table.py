"""The encoders by name, with the options of each. No torch: a recipe is checked against this table when it is made."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from annotated_types import Interval

from finepseudo.errors import RecipeError
from finepseudo.fields import Count, from_text, nearest

Part = Literal["frame", "video"]  # `frame` is f_A, `video` is f_E
Role = Literal["frame", "video", "frozen"]  # `frozen`: an f_A whose backbone makes the features that others see
PARTS: tuple[Part, ...] = get_args(Part)
Positions = Literal["none", "sinusoidal"]


Channels = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What an encoder takes for pixels p in 0..1: (p - mean) / std, channel by channel."""

    mean: Channels = (0.45, 0.45, 0.45)
    std: Channels = (0.225, 0.225, 0.225)

    @classmethod
    def of(cls, body: Any) -> Preprocessing:
        """From JSON values, `mean` and `std` of three channels; what else `body` has is of no account.

        Raises RecipeError: they are no such numbers.
        """
        mean, std = (cls._channels(name, body.get(name)) for name in ("mean", "std"))
        if min(std) <= 0:
            raise RecipeError(f"std: expected three numbers above 0, got {std}")
        return cls(mean=mean, std=std)

    @staticmethod
    def _channels(name: str, values: Any) -> Channels:
        try:
            red, green, blue = map(float, values)
        except (TypeError, ValueError):
            raise RecipeError(f"{name}: expected three numbers, got {values!r}") from None
        if not all(map(math.isfinite, (red, green, blue))):
            raise RecipeError(f"{name}: expected three finite numbers, got {values!r}")
        return red, green, blue


# As the public weights of each family were trained; weights that were trained otherwise say so in their metadata.
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
KINETICS = Preprocessing(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))
CLIP = Preprocessing(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


DropPath = Annotated[float, Interval(ge=0, le=0.9)]


@dataclass(frozen=True, kw_only=True)
class VTNOptions:
    dim: Count = 128  # D, width of the embedding
    positions: Positions = "none"
    """Codes of the frames' places. Sinusoidal ones give the lower loss in pre-training and the worse alignment [C]."""


@dataclass(frozen=True, kw_only=True)
class TinyVTNOptions(VTNOptions):
    dim: Count = 64


@dataclass(frozen=True, kw_only=True)
class VTNViTOptions(VTNOptions):
    drop_path: DropPath = 0.0
    """Stochastic depth: share of the frames whose branches the last layer leaves out in training; below it fewer."""


@dataclass(frozen=True, kw_only=True)
class FeatureVTNOptions(VTNOptions):
    dropout: Annotated[float, Interval(ge=0, le=0.9)] = 0.1
    """Share of the stored features that a training does not see; they have no augmentation of pixels [C]."""


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options that every f_E has: none."""

    @property
    def time_stride(self) -> int:
        """Frames of the clip for one time feature."""
        return 1

    @property
    def multiples(self) -> tuple[int, int]:
        """What must divide the number of frames of a clip, and the height and width of its frames."""
        return 1, 1


@dataclass(frozen=True, kw_only=True)
class AIMOptions(VideoOptions):
    drop_path: DropPath = 0.0
    """Share of the clips whose adapters of time and of both the last layer leaves out in training; below it fewer."""


@dataclass(frozen=True, kw_only=True)
class PatchOptions(VideoOptions):
    """Of a Transformer whose tokens are patches of 16 x 16 pixels."""

    @property
    def multiples(self) -> tuple[int, int]:
        return self.time_stride, 16


@dataclass(frozen=True, kw_only=True)
class TubeletOptions(PatchOptions):
    """Of one whose tokens are patches of two frames."""

    @property
    def time_stride(self) -> int:
        return 2


@dataclass(frozen=True, kw_only=True)
class VJEPA2Options(TubeletOptions):
    drop_path: DropPath = 0.0
    """Share of the clips whose branches the last layer leaves out in training; below it fewer."""


@dataclass(frozen=True, kw_only=True)
class TinyR2Plus1DOptions(VideoOptions):
    dropout: Annotated[float, Interval(ge=0, le=0.9)] = 0.2


@dataclass(frozen=True, kw_only=True)
class FeatureVideoOptions(VideoOptions):
    dropout: Annotated[float, Interval(ge=0, le=0.9)] = 0.2
    """Share of the stored features that a training does not see, and of those before the classifier [C]."""


@dataclass(frozen=True, kw_only=True)
class ClipResNetOptions(VideoOptions):
    temporal_stride_1: bool = False
    """The same parameters with temporal strides of 1: T frames give T time features, not T/8 [C]."""

    @property
    def time_stride(self) -> int:
        return 1 if self.temporal_stride_1 else 8


@dataclass(frozen=True)
class Entry:
    part: Part
    options: type
    made_by: str
    """Its class, as module:Class below models/; constructed with its options, `size` (height and width of the frames;
    the width of stored features) and, for f_E, `num_classes`."""
    preprocessing: Preprocessing = Preprocessing()
    width: int = 0  # of an f_A with a backbone per frame: features of a frame, which may be stored
    layers: bool = False  # a Transformer that says which its layers are (models/encoders.py)
    frozen: bool = False  # its backbone is never trained, so it is nothing without weights
    takes: Literal["pixels", "features"] = "pixels"
    library: str = ""
    """The optional library that its layers are of; `pip install finepseudo[library]` brings it."""


_HUB = "finepseudo.models.hub"
ENCODERS: dict[str, Entry] = {
    "tiny_vtn": Entry("frame", TinyVTNOptions, "finepseudo.models.tiny:TinyVTN", width=128),
    "vtn_resnet18": Entry("frame", VTNOptions, "finepseudo.models.resnet:VTNResNet18", IMAGENET, width=512),
    "vtn_resnet50": Entry("frame", VTNOptions, "finepseudo.models.resnet:VTNResNet50", IMAGENET, width=2048),
    "vtn_vit_s16": Entry("frame", VTNViTOptions, "finepseudo.models.vit:VTNViTS16", IMAGENET, width=384, layers=True),
    "vtn_vit_b16": Entry("frame", VTNViTOptions, "finepseudo.models.vit:VTNViTB16", IMAGENET, width=768, layers=True),
    "vtn_clip_vit_b16": Entry(
        "frame", VTNViTOptions, "finepseudo.models.vit:VTNCLIPViTB16", CLIP, width=768, layers=True
    ),
    "feature_vtn": Entry("frame", FeatureVTNOptions, "finepseudo.models.stored:FeatureVTN", takes="features"),
    "tiny_r2plus1d": Entry("video", TinyR2Plus1DOptions, "finepseudo.models.tiny:TinyR2Plus1D"),
    "r2plus1d_18": Entry("video", ClipResNetOptions, "finepseudo.models.resnet3d:R2Plus1D18", KINETICS),
    "r3d_18": Entry("video", ClipResNetOptions, "finepseudo.models.resnet3d:R3D18", KINETICS),
    "feature_transformer": Entry(
        "video", FeatureVideoOptions, "finepseudo.models.stored:FeatureTransformer", takes="features"
    ),
    "aim_vit_b16": Entry("video", AIMOptions, "finepseudo.models.aim:AIMViTB16", CLIP, layers=True, frozen=True),
    "videomae_b16": Entry(
        "video", TubeletOptions, f"{_HUB}:VideoMAEB16", IMAGENET, layers=True, library="transformers"
    ),
    "timesformer_b16": Entry(
        "video", PatchOptions, f"{_HUB}:TimeSformerB16", Preprocessing(), layers=True, library="transformers"
    ),
    "vjepa2_l16": Entry("video", VJEPA2Options, f"{_HUB}:VJEPA2L16", IMAGENET, layers=True, library="transformers"),
}


def unfrozen(name: str) -> str:
    """What is wrong with an encoder whose backbone is frozen before it has weights, in words."""
    return f"the backbone of {name} is never trained; name weights for it, such as jobs/import_weights.py makes"


@dataclass(frozen=True)
class Encoder:
    name: str
    options: Any
    preprocessing: Preprocessing = Preprocessing()

    @property
    def part(self) -> Part:
        return ENCODERS[self.name].part

    @property
    def lacks(self) -> str:
        """What to install on this machine before the encoder can be made, in words; empty where it can."""
        library = ENCODERS[self.name].library
        if not library or importlib.util.find_spec(library) is not None:
            return ""
        return (
            f"encoder {self.name!r} needs the library {library}, which is not installed; "
            f"pip install 'finepseudo[{library}]' on every machine of the run, or choose another encoder"
        )

    def check_library(self) -> None:
        """Raises RecipeError: the optional library that the encoder's layers are of is not installed."""
        if lacks := self.lacks:
            raise RecipeError(lacks)


def choose(name: str, options: Mapping[str, str] | None = None, *, part: Part | None = None) -> Encoder:
    """The encoder of a name, with options as text; what is not in `options` has its default.

    Raises RecipeError, with the choices: no such encoder, it is of the other part, or an option is wrong.
    """
    names = [other for other, entry in ENCODERS.items() if part in (None, entry.part)]
    if name not in names:
        which = {"frame": " that embeds frames (f_A)", "video": " that classifies clips (f_E)", None: ""}[part]
        raise RecipeError(f"no encoder {name!r}{which}{nearest(name, names)}; the choices are {', '.join(names)}")
    entry = ENCODERS[name]
    return Encoder(name, from_text(entry.options, options or {}, f"encoder {name!r}"), entry.preprocessing)
