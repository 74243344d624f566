"""Narrow convolutions for small frames on a CPU: the halves that both tiny encoders share.

Axes: B batch, T frames, C channels, H W pixels, F features, N = B*T frames of all clips.
"""

from itertools import pairwise

from torch import Tensor, nn

STAGE_CHANNELS = (16, 32, 64, 96)  # four 3x3 convolutions of stride 2 [C]
FEATURE_DIM = 128  # width after the flatten [C]


def frames_of(clip_BTCHW: Tensor) -> Tensor:
    """frame_NCHW: the frames of all clips in one batch, channels last in memory (measured: a third faster)."""
    if clip_BTCHW.ndim != 5:
        raise ValueError(f"expected a clip (B,T,C,H,W), got {tuple(clip_BTCHW.shape)}")
    return clip_BTCHW.flatten(0, 1).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


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
