"""The encoders by name: f_A gives one embedding per frame, f_E class logits per clip.

Axes: B batch, T frames, C channels, H W pixels, D embedding, F features, K classes.

Clips are float and normalised. No parameter is used outside its module's forward: a sharded engine may gather them.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from finepseudo.errors import RecipeError
from finepseudo.models.resnet import WIDTHS, ResNet18, clip_layer, clip_stem, init_weights
from finepseudo.models.tiny import FEATURE_DIM, FrameFeatures, TemporalStage, frames_of
from finepseudo.models.vtn import Positions, TemporalTransformer, UnitProjection


class FrameEncoder(nn.Module):
    """f_A [P]: clip_BTCHW -> emb_BTD, L2-normalised over D. A subclass sets what is named here."""

    dim: int
    feature_dim: int
    embed: UnitProjection

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF: what is projected to the embedding; the head of GITDL sits on it."""
        raise NotImplementedError

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """emb_BTD, unit length over D, fp32 even under autocast."""
        return self.embed(self.features(clip_BTCHW))


class VideoEncoder(nn.Module):
    """f_E [P]: clip_BTCHW -> logits_BK. A subclass sets what is named here."""

    feature_dim: int
    num_classes: int
    fc: nn.Linear

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF before the mean over time; T is the clip's divided by the encoder's temporal stride."""
        raise NotImplementedError

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """logits_BK."""
        raise NotImplementedError


class TinyVTN(FrameEncoder):
    """f_A for small frames on a CPU: four convolutions, then two Transformer layers of width 128; D = 64 [C]."""

    def __init__(self, *, size: int, dim: int = 64, positions: Positions = "none") -> None:
        super().__init__()
        self.dim, self.feature_dim = dim, FEATURE_DIM
        self.backbone = FrameFeatures(size)
        shape = {"in_width": FEATURE_DIM, "width": FEATURE_DIM, "layers": 2, "heads": 4, "mlp_ratio": 3}
        self.temporal = TemporalTransformer(**shape, positions=positions)
        self.embed = UnitProjection(FEATURE_DIM, dim)

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF, F = 128."""
        return self.temporal(self.backbone(clip_BTCHW))


class VTNResNet18(FrameEncoder):
    """f_A in VTN form [P]: ResNet-18 per frame, three Transformer layers of width 256 with 8 heads; D = 128 [A].

    The backbone's parameters are named `backbone.` + the public ResNet-18 names. Frames of any size.
    """

    def __init__(self, *, size: int, dim: int = 128, positions: Positions = "none") -> None:
        super().__init__()
        del size  # the mean over positions takes frames of any size
        self.dim, self.feature_dim = dim, 256
        self.backbone = ResNet18()
        shape = {"in_width": ResNet18.width, "width": self.feature_dim, "layers": 3, "heads": 8, "mlp_ratio": 4}
        self.temporal = TemporalTransformer(**shape, positions=positions)
        self.embed = UnitProjection(self.feature_dim, dim)

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF, F = 256."""
        feat_NF = self.backbone(frames_of(clip_BTCHW))
        return self.temporal(feat_NF.unflatten(0, clip_BTCHW.shape[:2]))


class TinyR2Plus1D(VideoEncoder):
    """f_E for small frames on a CPU: TinyVTN's convolutions, four temporal ones of stride 1, mean, dropout [C]."""

    def __init__(self, *, size: int, num_classes: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.feature_dim, self.num_classes = FEATURE_DIM, num_classes
        self.backbone = FrameFeatures(size, temporal_after=(3, 4))
        self.head = nn.ModuleList(TemporalStage(FEATURE_DIM) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(FEATURE_DIM, num_classes)

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF, F = 128, T that of the clip."""
        T = clip_BTCHW.shape[1]
        x_NCHW = self.backbone(clip_BTCHW).flatten(0, 1)[:, :, None, None]
        for stage in self.head:
            x_NCHW = stage(x_NCHW, T)
        return x_NCHW.flatten(1).unflatten(0, (-1, T))

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """logits_BK."""
        return self.fc(self.dropout(self.time_features(clip_BTCHW).mean(dim=1)))


class R2Plus1D18(VideoEncoder):
    """f_E: R(2+1)D-18 [P] with the parameter names and shapes of the public weights, which load strictly.

    Args:
        size: unused; frames of any size (112 in the paper).
        num_classes: K.
        temporal_stride_1: the same parameters with temporal strides of 1, so that T frames give T time features
            and not T/8; for pre-training on short clips [C].
    """

    def __init__(self, *, size: int, num_classes: int, temporal_stride_1: bool = False) -> None:
        super().__init__()
        del size
        self.feature_dim, self.num_classes = WIDTHS[-1], num_classes
        time_stride = 1 if temporal_stride_1 else 2
        self.stem = clip_stem()
        self.layer1 = clip_layer(64, 64, stride=1, time_stride=1)
        self.layer2 = clip_layer(64, 128, stride=2, time_stride=time_stride)
        self.layer3 = clip_layer(128, 256, stride=2, time_stride=time_stride)
        self.layer4 = clip_layer(256, 512, stride=2, time_stride=time_stride)
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        init_weights(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF, F = 512; T is ceil(T/8) of the clip, or T with `temporal_stride_1`."""
        if clip_BTCHW.ndim != 5:
            raise ValueError(f"expected a clip (B,T,C,H,W), got {tuple(clip_BTCHW.shape)}")
        x_BCTHW = self.stem(clip_BTCHW.transpose(1, 2))
        x_BCTHW = self.layer4(self.layer3(self.layer2(self.layer1(x_BCTHW))))
        return x_BCTHW.mean(dim=(3, 4)).transpose(1, 2)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """logits_BK."""
        return self.fc(self.time_features(clip_BTCHW).mean(dim=1))


ENCODERS: dict[str, Callable[..., FrameEncoder | VideoEncoder]] = {
    "tiny_vtn": TinyVTN,
    "vtn_resnet18": VTNResNet18,
    "tiny_r2plus1d": TinyR2Plus1D,
    "r2plus1d_18": R2Plus1D18,
}


def build(
    name: str, *, num_classes: int | None = None, size: int, seed: int, **options: Any
) -> FrameEncoder | VideoEncoder:
    """The encoder `name` with initial weights that depend on `seed` alone; the global generator stays as it was.

    Args:
        name: a key of ENCODERS.
        num_classes: K, for the encoders that classify; None for the others.
        size: height and width of the frames it will see.
        seed: of the initial weights.
        options: further arguments of the encoder, such as `positions` or `temporal_stride_1`.
    Raises:
        RecipeError: an unknown name or option, or `num_classes` missing or out of place.
    """
    if name not in ENCODERS:
        raise RecipeError(f"no encoder {name!r}{_nearest(name, list(ENCODERS))}; the choices are {', '.join(ENCODERS)}")
    known = list(inspect.signature(ENCODERS[name]).parameters)
    if ("num_classes" in known) != (num_classes is not None):
        need = "needs num_classes" if "num_classes" in known else "embeds frames and takes no num_classes"
        raise RecipeError(f"encoder {name!r} {need}, got num_classes={num_classes}")
    if size < 1 or (num_classes is not None and num_classes < 1):
        raise RecipeError(f"encoder {name!r}: expected size and num_classes >= 1, got {size} and {num_classes}")
    choices = [key for key in known if key not in ("size", "num_classes")]
    for key in options:
        if key not in choices:
            near = _nearest(key, choices)
            raise RecipeError(f"encoder {name!r} has no option {key!r}{near}; the choices are {', '.join(choices)}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: those of accelerators are not touched
        try:
            return ENCODERS[name](size=size, **options)
        except ValueError as error:
            raise RecipeError(f"encoder {name!r}: {error}") from error


def _nearest(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.4)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
