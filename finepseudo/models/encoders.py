"""What f_A and f_E are: one embedding per frame, class logits per clip. models/table.py names those that there are.

Axes: B batch, T frames, C channels, H W pixels, D embedding, F features, K classes, N = B*T frames of all clips.

Clips are float and normalised. No parameter is used outside its module's forward: a sharded engine may gather them.
"""

import functools
import importlib
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from finepseudo.models.table import ENCODERS, Encoder, Positions, Preprocessing
from finepseudo.models.vtn import TemporalTransformer, UnitProjection

GENERATOR = threading.RLock()
"""Held by whoever needs torch's global generator to itself: the driver's threads build encoders at the same time."""


class Layered(nn.Module):
    """What says which its layers are; a Transformer does."""

    layers: ClassVar[tuple[str, ...]] = ()
    """Names of its lists of layers, first to last; where there are several, those of a number are one layer."""
    foot: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of what stands before the first layer: patches, tokens, positions."""

    def from_top(self, name: str) -> int:
        """L + 1 - l of a parameter: l = 1 .. L in layer l, 0 before the layers, L + 1 behind them [A]."""
        count = len(list(self.get_submodule(self.layers[0]).children())) if self.layers else 0
        if name.startswith(self.foot):
            return count + 1
        for layers in self.layers:
            if name.startswith(f"{layers}."):
                return count - int(name.removeprefix(f"{layers}.").partition(".")[0])
        return 0


class FrameEncoder(Layered):
    """f_A [P]: clip_BTCHW -> emb_BTD, unit length over D, fp32 even under autocast. A subclass sets these."""

    below: ClassVar[str] = "backbone."
    """Beginning of the names of what public weights are of."""
    own: ClassVar[tuple[str, ...]] = ("temporal.", "embed.")
    """Beginnings of the names that public weights of a backbone do not have: initialised here."""
    preprocessing: Preprocessing  # of the pixels that it takes
    dim: int
    feature_dim: int
    embed: UnitProjection

    def frame_features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTC of the backbone: each frame alone. C is `width` in the table; what it says 0 of has none."""
        raise NotImplementedError

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF: what is projected to the embedding; the head of GITDL sits on it."""
        raise NotImplementedError

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        return self.embed(self.features(clip_BTCHW))


class VideoEncoder(Layered):
    """f_E [P]: clip_BTCHW -> logits_BK. A subclass sets what is named here."""

    below: ClassVar[str] = ""
    own: ClassVar[tuple[str, ...]] = ("fc.",)
    """Both as of FrameEncoder; the classifier's classes are others."""
    preprocessing: Preprocessing
    feature_dim: int
    num_classes: int
    fc: nn.Linear

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF, a feature for each time; T is the clip's divided by the encoder's temporal stride."""
        raise NotImplementedError


def recompute(encoder: Layered) -> None:
    """Of each layer only its input is kept for the backward pass, which computes the rest again: the same gradients.

    The layer's own call stays outside, so that an engine's hooks on it run once; dropped samples are the same again.
    """
    for layers in encoder.layers:
        for layer in encoder.get_submodule(layers).children():
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def frames_of(clip_BTCHW: Tensor) -> Tensor:
    """frame_NCHW: the frames of all clips in one batch, channels last in memory (measured: a third faster)."""
    if clip_BTCHW.ndim != 5:
        raise ValueError(f"expected a clip (B,T,C,H,W), got {tuple(clip_BTCHW.shape)}")
    return clip_BTCHW.flatten(0, 1).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class VTN(FrameEncoder):
    """f_A in VTN form [P]: a backbone per frame, three Transformer layers of width 256 with 8 heads; D = 128 [A].

    Its parameters are named `backbone.` + the names in the backbone's own file. Frames of any size.

    Options that are not named here are the backbone's.
    """

    make_backbone: ClassVar[Callable[..., Any]]
    """A subclass says it: frame_NCHW -> feat_NF, F = its `width`."""

    def __init__(self, *, size: int, dim: int, positions: Positions, **backbone: Any) -> None:
        super().__init__()
        del size
        self.dim, self.feature_dim = dim, 256
        self.backbone = self.make_backbone(**backbone)
        shape = {"in_width": self.backbone.width, "width": self.feature_dim, "layers": 3, "heads": 8, "mlp_ratio": 4}
        self.temporal = TemporalTransformer(**shape, positions=positions)
        self.embed = UnitProjection(self.feature_dim, dim)

    def frame_features(self, clip_BTCHW: Tensor) -> Tensor:
        return self.backbone(frames_of(clip_BTCHW)).unflatten(0, clip_BTCHW.shape[:2])

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        return self.temporal(self.frame_features(clip_BTCHW))


def build(encoder: Encoder, *, num_classes: int, size: int, seed: int) -> Any:
    """A FrameEncoder or VideoEncoder with initial weights that depend on `seed` alone; the global generator stays.

    Args:
        num_classes: K, of an f_E; an f_A embeds frames and does not ask.
        size: height and width of the frames it will see; C where it sees stored features.
    Raises RecipeError: it needs a library that is not installed.
    """
    encoder.check_library()
    module, _, name = ENCODERS[encoder.name].made_by.partition(":")
    kind = getattr(importlib.import_module(module), name)
    classes = {"num_classes": num_classes} if encoder.part == "video" else {}
    with GENERATOR, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: those of accelerators are not touched
        made = kind(size=size, **classes, **vars(encoder.options))
    made.preprocessing = encoder.preprocessing
    return made
