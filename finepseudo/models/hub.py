"""VideoMAE, TimeSformer and V-JEPA 2 as f_E: their layers are those of the library `transformers`, an optional one.

Made from the numbers below, so nothing is fetched; the library is imported when one of them is made. Names of
parameters are the library's, less what stands before all of them, and `fc` for its classifier.

Axes: B batch, T frames, C channels, H W pixels, F features, K classes, L tokens, h w grid of patches,
t tubelets in time.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from finepseudo.models.encoders import VideoEncoder
from finepseudo.models.positions import Kind, resized_grid, resized_times

PATCH, TUBELET = 16, 2
GRID, FRAMES = 14, 8  # patches along a side, frames: of the tables of positions that public weights have


def check_clip(clip_BTCHW: Tensor, *, size: int, tubelet: int) -> None:
    """Raises ValueError: no clip of frames of size x size, or its frames do not fill tubelets."""
    shape = tuple(clip_BTCHW.shape)
    if len(shape) != 5 or shape[2:] != (3, size, size) or shape[1] % tubelet or not shape[1]:
        raise ValueError(f"expected a clip (B,T,3,{size},{size}) with T a multiple of {tubelet}, got {shape}")


def _grid(size: int) -> int:
    """Patches along a side."""
    if size % PATCH or size < PATCH:
        raise ValueError(f"size: expected a multiple of {PATCH}, the side of a patch, got {size}")
    return size // PATCH


def _initialise(module: nn.Module) -> None:
    """Linear maps and convolutions: normal, cut at two of its deviations of .02; biases 0 [A]."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


@functools.lru_cache(maxsize=8)
def sine_positions(t: int, side: int, width: int) -> Tensor:
    """position_LF, L = t side side, fixed: sin and cos of n / 10000^(2i/F) by turns, n = 196 t + 14 y + x [A].

    n counts tubelets of a grid of 14 x 14, the public weights' own. For another grid the table is resampled [C]: were
    they counted anew, the same n would be another place.
    """
    n_L1 = np.arange(t * GRID * GRID, dtype=np.float64)[:, None]
    angle_LF = n_L1 / np.power(10000, 2 * (np.arange(width) // 2) / width)
    angle_LF[:, 0::2], angle_LF[:, 1::2] = np.sin(angle_LF[:, 0::2]), np.cos(angle_LF[:, 1::2])
    table_thwF = torch.from_numpy(angle_LF.astype(np.float32)).unflatten(0, (t, GRID, GRID))
    return resized_grid(table_thwF.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1).reshape(-1, width).contiguous()


class SinePositions(nn.Module):
    """clip_BTCHW -> token_BLF of VideoMAE: tubelets with fixed positions; time goes on as the formula does."""

    def __init__(self, patch_embeddings: nn.Module, side: int) -> None:
        super().__init__()
        self.patch_embeddings, self.side = patch_embeddings, side

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        token_BLF = self.patch_embeddings(clip_BTCHW)
        return token_BLF + sine_positions(clip_BTCHW.shape[1] // TUBELET, self.side, token_BLF.shape[-1]).to(token_BLF)


class VideoMAEB16(VideoEncoder):
    """VideoMAE ViT-B/16 as it classifies [A]: logits = fc(norm(mean of all tokens)); 86,227,200 parameters less `fc`.

    A time feature is the mean over space of a tubelet's tokens, two frames.
    """

    own: ClassVar[tuple[str, ...]] = ("fc.", "fc_norm.")
    layers: ClassVar[tuple[str, ...]] = ("encoder.layer",)
    foot: ClassVar[tuple[str, ...]] = ("embeddings.",)
    shape: ClassVar[dict[str, int]] = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072
    }  # fmt: skip

    def __init__(self, *, size: int, num_classes: int) -> None:
        super().__init__()
        from transformers import VideoMAEConfig
        from transformers.models.videomae import modeling_videomae as library

        configured: Any = VideoMAEConfig
        config = configured(
            **self.shape, image_size=size, patch_size=PATCH, tubelet_size=TUBELET, attn_implementation="sdpa"
        )
        self.size, self.num_classes, self.feature_dim = size, num_classes, config.hidden_size
        self.embeddings = SinePositions(library.VideoMAEPatchEmbeddings(config), _grid(size))
        self.encoder = library.VideoMAEEncoder(config)
        self.fc_norm = nn.LayerNorm(self.feature_dim)
        self.fc = nn.Linear(self.feature_dim, num_classes)
        _initialise(self)

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        check_clip(clip_BTCHW, size=self.size, tubelet=TUBELET)
        token_BLF = self.encoder(self.embeddings(clip_BTCHW)).last_hidden_state
        return token_BLF.unflatten(1, (clip_BTCHW.shape[1] // TUBELET, -1)).mean(dim=2)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        return self.fc(self.fc_norm(self.time_features(clip_BTCHW).mean(dim=1)))


class SpaceTimeTokens(nn.Module):
    """clip_BTCHW -> token_BLF of TimeSformer, L = 1 + h w T: the class token, then the patches, their frames in turn.

        token = patch + position of its place + position of its time;  class token + its own position               [A]

    The tables are of 14 x 14 places and 8 times, as public weights have them; for others they are interpolated on every
    call, bicubic and linear [C].
    """

    tables: ClassVar[dict[str, Kind]] = {"position_embeddings": "grid", "time_embeddings": "times"}

    def __init__(self, patch_embeddings: nn.Module, side: int, width: int) -> None:
        super().__init__()
        self.patch_embeddings, self.side = patch_embeddings, side
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        places = torch.empty(1, 1 + GRID**2, width)
        self.position_embeddings = nn.Parameter(nn.init.trunc_normal_(places, std=0.02))
        self.time_embeddings = nn.Parameter(torch.zeros(1, FRAMES, width))

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        B, T = clip_BTCHW.shape[:2]
        patch_NLF, *_ = self.patch_embeddings(clip_BTCHW)
        own_1F, place_LF = self.position_embeddings[0].split([1, GRID**2])
        table_1Fhw = place_LF.T.unflatten(1, (GRID, GRID))[None]
        place_LF = resized_grid(table_1Fhw, self.side).flatten(2)[0].T
        time_TF = resized_times(self.time_embeddings[0], T)
        token_BLTF = patch_NLF.unflatten(0, (B, T)).transpose(1, 2) + place_LF[:, None] + time_TF
        class_B1F = (self.cls_token[0] + own_1F).to(token_BLTF.dtype).expand(B, 1, -1)
        return torch.cat([class_B1F, token_BLTF.flatten(1, 2)], dim=1)


class TimeSformerB16(VideoEncoder):
    """TimeSformer-B/16, attention over time and over space by turns [A]: logits = fc(class token after the norm).

    121,258,752 parameters less `fc`. A time feature is the mean over space of a frame's tokens.
    """

    layers: ClassVar[tuple[str, ...]] = ("encoder.layer",)
    foot: ClassVar[tuple[str, ...]] = ("embeddings.",)
    shape: ClassVar[dict[str, int]] = VideoMAEB16.shape

    def __init__(self, *, size: int, num_classes: int) -> None:
        super().__init__()
        from transformers import TimesformerConfig
        from transformers.models.timesformer import modeling_timesformer as library

        configured: Any = TimesformerConfig
        config = configured(**self.shape, image_size=size, patch_size=PATCH)
        self.size, self.num_classes, self.feature_dim = size, num_classes, config.hidden_size
        self.config = config
        self.embeddings = SpaceTimeTokens(library.TimesformerPatchEmbeddings(config), _grid(size), self.feature_dim)
        self.encoder = library.TimesformerEncoder(config)
        self.layernorm = nn.LayerNorm(self.feature_dim, eps=config.layer_norm_eps)
        self.fc = nn.Linear(self.feature_dim, num_classes)
        _initialise(self)

    def _tokens(self, clip_BTCHW: Tensor) -> Tensor:
        check_clip(clip_BTCHW, size=self.size, tubelet=1)
        self.config.num_frames = clip_BTCHW.shape[1]  # its layers read there how many frames there are
        return self.layernorm(self.encoder(self.embeddings(clip_BTCHW)).last_hidden_state)

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        return self._tokens(clip_BTCHW)[:, 1:].unflatten(1, (-1, clip_BTCHW.shape[1])).mean(dim=1)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        return self.fc(self._tokens(clip_BTCHW)[:, 0])


class VJEPA2L16(VideoEncoder):
    """V-JEPA 2 ViT-L/16 with rotary positions and its attentive pooler [A]: logits = fc(pooler(all tokens)).

    Less `fc` and the pooler, which weights of its pre-training do not have, 303,885,312 parameters. A time feature is
    the mean over space of a tubelet's tokens, two frames.
    """

    own: ClassVar[tuple[str, ...]] = ("fc.", "pooler.")
    layers: ClassVar[tuple[str, ...]] = ("encoder.layer",)
    foot: ClassVar[tuple[str, ...]] = ("encoder.embeddings.",)
    shape: ClassVar[dict[str, int]] = {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "num_pooler_layers": 3
    }  # fmt: skip

    def __init__(self, *, size: int, num_classes: int, drop_path: float) -> None:
        super().__init__()
        from transformers import VJEPA2Config
        from transformers.models.vjepa2 import modeling_vjepa2 as library

        configured: Any = VJEPA2Config
        config = configured(
            **self.shape, crop_size=_grid(size) * PATCH, patch_size=PATCH, tubelet_size=TUBELET,
            drop_path_rate=drop_path, attn_implementation="sdpa",
        )  # fmt: skip
        self.size, self.num_classes, self.feature_dim = size, num_classes, config.hidden_size
        self.encoder = library.VJEPA2Encoder(config)
        self.pooler = library.VJEPA2AttentivePooler(config)
        self.fc = nn.Linear(self.feature_dim, num_classes)
        _initialise(self)
        nn.init.trunc_normal_(self.pooler.query_tokens, std=0.02)

    def _tokens(self, clip_BTCHW: Tensor) -> Tensor:
        check_clip(clip_BTCHW, size=self.size, tubelet=TUBELET)
        return self.encoder(clip_BTCHW).last_hidden_state

    def time_features(self, clip_BTCHW: Tensor) -> Tensor:
        return self._tokens(clip_BTCHW).unflatten(1, (clip_BTCHW.shape[1] // TUBELET, -1)).mean(dim=2)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        return self.fc(self.pooler(self._tokens(clip_BTCHW)))
