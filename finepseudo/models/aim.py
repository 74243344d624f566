"""AIM: CLIP's visual Transformer, frozen, made an f_E by small adapters for space, time and both.

Axes: B batch, T frames, C channels, H W pixels, F features, K classes, L tokens of a frame.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finepseudo.models.encoders import VideoEncoder, frames_of
from finepseudo.models.positions import resized_times
from finepseudo.models.vit import ViT, VTNViT
from finepseudo.models.vtn import DropPath, drop_rates

FRAMES = 8  # of the table of times; for another number it is interpolated


class Adapter(nn.Module):
    """up(gelu(down x)), a quarter of the width between; 0 until it is trained [A]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // 4)
        self.up = nn.Linear(width // 4, width)
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(x)))


class Adapters(nn.Module):
    """Those of one layer; the layer's own attention is used twice, along the frames of a token and inside a frame.

    x = x + drop(A_time(attention over time(norm1 x)))                                                          [A]
    x = x + y + A_space(y),  y = attention over space(norm1 x)
    x = x + mlp(norm2 x) + drop(A_joint(norm2 x)) / 2

    What is dropped is dropped of a whole clip [C].
    """

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.time, self.space, self.joint = Adapter(width), Adapter(width), Adapter(width)
        self.drop = DropPath(drop_path)

    def forward(self, x_BTLF: Tensor, layer: Any) -> Tensor:
        B, T = x_BTLF.shape[:2]
        x_MTF = x_BTLF.transpose(1, 2).flatten(0, 1)  # M = B L sequences over time
        over_time = self.time(layer.attention(layer.norm1(x_MTF))).unflatten(0, (B, -1)).transpose(1, 2)
        x_NLF = (x_BTLF + self.drop(over_time)).flatten(0, 1)
        y_NLF = layer.attention(layer.norm1(x_NLF))
        x_NLF = x_NLF + y_NLF + self.space(y_NLF)
        y_NLF = layer.norm2(x_NLF)
        joint_BTLF = self.drop(self.joint(y_NLF).unflatten(0, (B, T)))
        return (x_NLF + layer.mlp(y_NLF)).unflatten(0, (B, T)) + joint_BTLF / 2


class Times(nn.Module):
    """token_BTLF + position of its frame: a table of 8, 0 until it is trained [A]; for other T interpolated [C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position_TF = nn.Parameter(torch.zeros(FRAMES, width))

    def forward(self, token_BTLF: Tensor) -> Tensor:
        position_TF = resized_times(self.position_TF, token_BTLF.shape[1])
        return token_BTLF + position_TF[:, None].to(token_BTLF.dtype)


class AIMViTB16(VideoEncoder):
    """AIM on CLIP's ViT-B/16 [P, second table]: logits = fc(mean over frames of their class tokens).

    85,799,424 parameters of the backbone, frozen but for its last norm; 10,657,536 of adapters and times. Without
    training it is CLIP on every frame and the mean. Frames of any size.
    """

    below: ClassVar[str] = "backbone."
    own: ClassVar[tuple[str, ...]] = ("fc.", "adapters.", "times.")
    layers: ClassVar[tuple[str, ...]] = ("backbone.layers", "adapters")
    foot: ClassVar[tuple[str, ...]] = (*VTNViT.foot, "times.")
    shape: ClassVar[dict[str, int]] = {"width": 768, "heads": 12, "layers": 12}

    def __init__(self, *, size: int, num_classes: int, drop_path: float) -> None:
        super().__init__()
        del size
        self.backbone = ViT(**self.shape, clip=True)
        self.feature_dim, self.num_classes = self.backbone.width, num_classes
        self.times = Times(self.feature_dim)
        rates = drop_rates(drop_path, len(self.backbone.layers))
        self.adapters = nn.ModuleList(Adapters(self.feature_dim, rate) for rate in rates)
        self.fc = nn.Linear(self.feature_dim, num_classes)
        nn.init.normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)
        self.backbone.requires_grad_(False)  # noqa: FBT003 (torch's own)
        self.backbone.norm.requires_grad_(True)  # noqa: FBT003

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        vit = self.backbone
        token_NLF = vit.tokens(vit.patches(frames_of(clip_BTCHW)))
        x_BTLF = vit.norm_in(self.times(token_NLF.unflatten(0, clip_BTCHW.shape[:2])))
        for adapters, layer in zip(self.adapters, vit.layers, strict=True):
            x_BTLF = adapters(x_BTLF, layer)
        return vit.norm(x_BTLF[:, :, 0])

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        return self.fc(self.time_features(clip_BTCHW).mean(dim=1))
