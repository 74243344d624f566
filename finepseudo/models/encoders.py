"""The encoders: f_A gives one embedding per frame, f_E class logits per clip. models/table.py has their options.

Axes: B batch, T frames, C channels, H W pixels, D embedding, F features, K classes.

Clips are float and normalised. No parameter is used outside its module's forward: a sharded engine may gather them.
"""

import importlib
import threading
from typing import Any

import torch
from torch import Tensor, nn

from finepseudo.models.resnet import WIDTHS, ResNet18, clip_layer, clip_stem, init_weights
from finepseudo.models.table import ENCODERS, Encoder, Positions
from finepseudo.models.tiny import FEATURE_DIM, FrameFeatures, TemporalStage, frames_of
from finepseudo.models.vtn import TemporalTransformer, UnitProjection

GENERATOR = threading.RLock()
"""Held by whoever needs torch's global generator to itself: the driver's threads build encoders at the same time."""


class FrameEncoder(nn.Module):
    """f_A [P]: clip_BTCHW -> emb_BTD, unit length over D, fp32 even under autocast. A subclass sets these."""

    dim: int
    feature_dim: int
    embed: UnitProjection

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF: what is projected to the embedding; the head of GITDL sits on it."""
        raise NotImplementedError

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        return self.embed(self.features(clip_BTCHW))


class VideoEncoder(nn.Module):
    """f_E [P]: clip_BTCHW -> logits_BK. A subclass sets what is named here."""

    feature_dim: int
    num_classes: int
    fc: nn.Linear

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        """feat_BTF before the mean over time; T is the clip's divided by the encoder's temporal stride."""
        raise NotImplementedError


class TinyVTN(FrameEncoder):
    """f_A for small frames on a CPU: four convolutions, then two Transformer layers of width 128; D = 64 [C]."""

    def __init__(self, *, size: int, dim: int, positions: Positions) -> None:
        super().__init__()
        self.dim, self.feature_dim = dim, FEATURE_DIM
        self.backbone = FrameFeatures(size)
        shape = {"in_width": FEATURE_DIM, "width": FEATURE_DIM, "layers": 2, "heads": 4, "mlp_ratio": 3}
        self.temporal = TemporalTransformer(**shape, positions=positions)
        self.embed = UnitProjection(FEATURE_DIM, dim)

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        return self.temporal(self.backbone(clip_BTCHW))


class VTNResNet18(FrameEncoder):
    """f_A in VTN form [P]: ResNet-18 per frame, three Transformer layers of width 256 with 8 heads; D = 128 [A].

    The backbone's parameters are named `backbone.` + the public ResNet-18 names. Frames of any size.
    """

    def __init__(self, *, size: int, dim: int, positions: Positions) -> None:
        super().__init__()
        del size  # the mean over positions takes frames of any size
        self.dim, self.feature_dim = dim, 256
        self.backbone = ResNet18()
        shape = {"in_width": ResNet18.width, "width": self.feature_dim, "layers": 3, "heads": 8, "mlp_ratio": 4}
        self.temporal = TemporalTransformer(**shape, positions=positions)
        self.embed = UnitProjection(self.feature_dim, dim)

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        feat_NF = self.backbone(frames_of(clip_BTCHW))
        return self.temporal(feat_NF.unflatten(0, clip_BTCHW.shape[:2]))


class TinyR2Plus1D(VideoEncoder):
    """f_E for small frames on a CPU: TinyVTN's convolutions, four temporal ones of stride 1, mean, dropout [C]."""

    def __init__(self, *, size: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.feature_dim, self.num_classes = FEATURE_DIM, num_classes
        self.backbone = FrameFeatures(size, temporal_after=(3, 4))
        self.head = nn.ModuleList(TemporalStage(FEATURE_DIM) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(FEATURE_DIM, num_classes)

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        T = clip_BTCHW.shape[1]
        x_NCHW = self.backbone(clip_BTCHW).flatten(0, 1)[:, :, None, None]
        for stage in self.head:
            x_NCHW = stage(x_NCHW, T)
        return x_NCHW.flatten(1).unflatten(0, (-1, T))

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        return self.fc(self.dropout(self.time_features(clip_BTCHW).mean(dim=1)))


class R2Plus1D18(VideoEncoder):
    """f_E: R(2+1)D-18 [P] with the parameter names and shapes of the public weights, which load strictly.

    `temporal_stride_1`: the same parameters with temporal strides of 1, so that T frames give T time features and not
    T/8; for pre-training on short clips [C]. Frames of any size (112 in the paper).
    """

    def __init__(self, *, size: int, num_classes: int, temporal_stride_1: bool) -> None:
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
        return self.fc(self.time_features(clip_BTCHW).mean(dim=1))


def build(encoder: Encoder, *, num_classes: int, size: int, seed: int) -> Any:
    """A FrameEncoder or VideoEncoder with initial weights that depend on `seed` alone; the global generator stays.

    Args:
        num_classes: K, of an f_E; an f_A embeds frames and does not ask.
        size: height and width of the frames it will see.
    """
    module, _, name = ENCODERS[encoder.name].made_by.partition(":")
    kind = getattr(importlib.import_module(module), name)
    classes = {"num_classes": num_classes} if encoder.part == "video" else {}
    with GENERATOR, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: those of accelerators are not touched
        return kind(size=size, **classes, **vars(encoder.options))
