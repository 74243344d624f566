"""The encoders for small frames on a CPU, on narrow convolutions that both share.

Axes: B batch, T frames, C channels, H W pixels, F features, K classes, N = B*T frames of all clips.
"""

from itertools import pairwise

from torch import Tensor, nn

from finepseudo.models.encoders import FrameEncoder, VideoEncoder, frames_of
from finepseudo.models.table import Positions
from finepseudo.models.vtn import TemporalTransformer, UnitProjection

STAGE_CHANNELS = (16, 32, 64, 96)  # four 3x3 convolutions of stride 2 [C]
FEATURE_DIM = 128  # width after the flatten [C]


class SpatialStage(nn.Sequential):
    """3x3 convolution of stride 2, BatchNorm, ReLU on every frame: (N,C,H,W) -> (N,C',ceil(H/2),ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class TemporalStage(nn.Module):
    """(3,1,1) convolution over time, BatchNorm, ReLU; shape and number of frames stay.

    Computed as a 2-D convolution of kernel (3,1) on the plane time x position: with channels last neither reshape
    copies, which on a CPU is faster than Conv3d, than Conv1d and than a linear map of three shifted copies [C].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_NCHW: Tensor, num_frames: int) -> Tensor:
        """N holds whole clips of `num_frames` frames, one after the other."""
        N, C, H, W = x_NCHW.shape
        plane_BTSC = x_NCHW.permute(0, 2, 3, 1).reshape(N // num_frames, num_frames, H * W, C)
        plane_BCTS = self.relu(self.norm(self.conv(plane_BTSC.permute(0, 3, 1, 2))))
        return plane_BCTS.permute(0, 2, 3, 1).reshape(N, H, W, C).permute(0, 3, 1, 2)


class FrameFeatures(nn.Module):
    """Four spatial stages, flatten, fully connected: clip_BTCHW -> feat_BTF, F = 128 [C].

    Args:
        size: height and width of the frames; it fixes the width of the flattened map.
        temporal_after: numbers (1 to 4) of the stages that a temporal stage follows.
    """

    def __init__(self, size: int, *, temporal_after: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.size = size
        channels = (3, *STAGE_CHANNELS)
        self.stages = nn.ModuleList(SpatialStage(a, b) for a, b in pairwise(channels))
        self.temporal = nn.ModuleDict({str(i): TemporalStage(channels[i]) for i in temporal_after})
        side = size
        for _ in STAGE_CHANNELS:
            side = (side + 1) // 2
        self.fc = nn.Linear(STAGE_CHANNELS[-1] * side * side, FEATURE_DIM)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        x_NCHW = frames_of(clip_BTCHW)
        if tuple(x_NCHW.shape[1:]) != (3, self.size, self.size):
            raise ValueError(f"built for frames of 3x{self.size}x{self.size}, got a clip {tuple(clip_BTCHW.shape)}")
        for i, stage in enumerate(self.stages, start=1):
            x_NCHW = stage(x_NCHW)
            if str(i) in self.temporal:
                x_NCHW = self.temporal[str(i)](x_NCHW, clip_BTCHW.shape[1])
        return self.relu(self.fc(x_NCHW.flatten(1))).unflatten(0, clip_BTCHW.shape[:2])


class TinyVTN(FrameEncoder):
    """f_A for small frames on a CPU: four convolutions, then two Transformer layers of width 128; D = 64 [C]."""

    def __init__(self, *, size: int, dim: int, positions: Positions) -> None:
        super().__init__()
        self.dim, self.feature_dim = dim, FEATURE_DIM
        self.backbone = FrameFeatures(size)
        shape = {"in_width": FEATURE_DIM, "width": FEATURE_DIM, "layers": 2, "heads": 4, "mlp_ratio": 3}
        self.temporal = TemporalTransformer(**shape, positions=positions)
        self.embed = UnitProjection(FEATURE_DIM, dim)

    def frame_features(self, clip_BTCHW: Tensor) -> Tensor:
        return self.backbone(clip_BTCHW)

    def features(self, clip_BTCHW: Tensor) -> Tensor:
        return self.temporal(self.frame_features(clip_BTCHW))


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
