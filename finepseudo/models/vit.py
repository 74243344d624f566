"""Vision Transformers per frame, ViT and CLIP's visual one, and f_A on top of them.

Axes: B batch, T frames, C channels, H W pixels, F features, N = B*T frames of all clips, L tokens, h w grid of patches.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finepseudo.models.encoders import VTN
from finepseudo.models.positions import Kind
from finepseudo.models.vtn import TransformerLayer, drop_rates

PATCH, GRID = 16, 14  # pixels of a patch; patches along a side of the public weights' frames of 224 x 224


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the GELU that CLIP was trained with [A]."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Patches(nn.Module):
    """frame_NCHW -> patch_NFhw by a convolution of 16x16 and stride 16.

    A frame whose sides 16 does not divide is padded with the mean colour, at the right and at the bottom [C].
    """

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, PATCH, stride=PATCH, bias=bias)

    def forward(self, frame_NCHW: Tensor) -> Tensor:
        H, W = frame_NCHW.shape[2:]
        return self.project(F.pad(frame_NCHW, (0, -W % PATCH, 0, -H % PATCH)))


class Tokens(nn.Module):
    """patch_NFhw -> token_NLF, L = 1 + h w: the class token, then the patches, all with their positions added.

    The table of positions is that of a 14 x 14 grid, as public weights have it. For another grid it is interpolated,
    bicubic, in fp32, on every call [A]; the class token keeps its own.
    """

    tables: ClassVar[dict[str, Kind]] = {"position_LF": "grid"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.class_F = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.position_LF = nn.Parameter(nn.init.trunc_normal_(torch.empty(1 + GRID**2, width), std=0.02))

    def forward(self, patch_NFhw: Tensor) -> Tensor:
        N, width, h, w = patch_NFhw.shape
        position_LF = self.position_LF
        if (h, w) != (GRID, GRID):
            table_1Fhw = position_LF[1:].T.reshape(1, width, GRID, GRID)
            with torch.autocast(patch_NFhw.device.type, enabled=False):
                there_1Fhw = F.interpolate(table_1Fhw, (h, w), mode="bicubic", align_corners=False)
            position_LF = torch.cat([position_LF[:1], there_1Fhw.flatten(2)[0].T])
        patch_NLF = patch_NFhw.flatten(2).transpose(1, 2)
        class_N1F = self.class_F.to(patch_NLF.dtype).expand(N, 1, width)
        return torch.cat([class_N1F, patch_NLF], dim=1) + position_LF


class ViT(nn.Module):
    """A Vision Transformer without its classifier: frame_NCHW -> feat_NF, the class token after the last norm.

        x = [class, patches] + positions;  x = x + attention(norm x);  x = x + mlp(norm x);  feat = norm(x_class)    [A]

    Args:
        clip: as CLIP has it: patches without a bias, a norm before the first layer, QuickGELU, and 1e-5 in the norms
            instead of 1e-6. Its projection to the space of texts is left out.
        drop_path: share of the frames whose branches the last layer leaves out in training.
    """

    def __init__(self, width: int, heads: int, *, layers: int = 12, clip: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        self.width = width
        eps = 1e-5 if clip else 1e-6
        activation = QuickGELU if clip else nn.GELU
        self.patches = Patches(width, bias=not clip)
        self.tokens = Tokens(width)
        self.norm_in = nn.LayerNorm(width, eps=eps) if clip else nn.Identity()
        layer = {"eps": eps, "activation": activation, "fused": True}
        self.layers = nn.Sequential(
            *(
                TransformerLayer(width, heads, 4 * width, **layer, drop_path=rate)
                for rate in drop_rates(drop_path, layers)
            )
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, frame_NCHW: Tensor) -> Tensor:
        token_NLF = self.layers(self.norm_in(self.tokens(self.patches(frame_NCHW))))
        return self.norm(token_NLF[:, 0])


class VTNViT(VTN):
    """A ViT per frame."""

    layers: ClassVar[tuple[str, ...]] = ("backbone.layers",)
    foot: ClassVar[tuple[str, ...]] = ("backbone.patches.", "backbone.tokens.", "backbone.norm_in.")


class VTNViTS16(VTNViT):
    """ViT-S/16 per frame; 21,665,664 parameters in the backbone."""

    make_backbone = staticmethod(partial(ViT, 384, 6))


class VTNViTB16(VTNViT):
    """ViT-B/16 per frame; 85,798,656 parameters in the backbone."""

    make_backbone = staticmethod(partial(ViT, 768, 12))


class VTNCLIPViTB16(VTNViT):
    """CLIP's visual ViT-B/16 per frame; 85,799,424 parameters in the backbone."""

    make_backbone = staticmethod(partial(ViT, 768, 12, clip=True))
