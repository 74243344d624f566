"""R(2+1)D-18 and R3D-18, the f_E of the full size, with the parameter names of the public weights.

Axes: B batch, T frames, C channels, H W pixels, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from finepseudo.models.encoders import VideoEncoder
from finepseudo.models.resnet import WIDTHS, init_weights

Convolution = Callable[..., nn.Module]
"""in_channels, channels, middle, stride=, time_stride= -> a convolution over space and time."""


def factored_width(in_channels: int, channels: int) -> int:
    """M = floor(27 in out / (9 in + 3 out)): the pair then has the parameters of one 3x3x3 convolution [A]."""
    return in_channels * channels * 27 // (in_channels * 9 + 3 * channels)


def conv2plus1d(in_channels: int, channels: int, middle: int, *, stride: int, time_stride: int) -> nn.Sequential:
    """A 1x3x3 convolution to `middle` channels, BatchNorm, ReLU, then a 3x1x1 convolution to `channels` [A]."""
    space, time = (1, stride, stride), (time_stride, 1, 1)
    return nn.Sequential(
        nn.Conv3d(in_channels, middle, (1, 3, 3), stride=space, padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, channels, (3, 1, 1), stride=time, padding=(1, 0, 0), bias=False),
    )


def conv3d(in_channels: int, channels: int, middle: int, *, stride: int, time_stride: int) -> nn.Conv3d:
    """One 3x3x3 convolution; `middle` is the affair of factored ones."""
    del middle
    return nn.Conv3d(in_channels, channels, 3, stride=(time_stride, stride, stride), padding=1, bias=False)


class ClipBlock(nn.Module):
    """Basic residual block of two convolutions over space and time; factored ones share one middle width [A]."""

    def __init__(
        self, convolution: Convolution, in_channels: int, channels: int, *, stride: int, time_stride: int
    ) -> None:
        super().__init__()
        middle = factored_width(in_channels, channels)
        first = convolution(in_channels, channels, middle, stride=stride, time_stride=time_stride)
        second = convolution(channels, channels, middle, stride=1, time_stride=1)
        self.conv1 = nn.Sequential(first, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(second, nn.BatchNorm3d(channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            strides = (time_stride, stride, stride)
            short_cut = nn.Conv3d(in_channels, channels, 1, stride=strides, bias=False)
            self.downsample = nn.Sequential(short_cut, nn.BatchNorm3d(channels))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        short_cut = x_BCTHW if self.downsample is None else self.downsample(x_BCTHW)
        return self.relu(self.conv2(self.conv1(x_BCTHW)) + short_cut)


def factored_stem() -> nn.Sequential:
    """1x7x7 convolution of stride 2 to 45 channels, 3x1x1 convolution to 64, each with BatchNorm and ReLU [A]."""
    return nn.Sequential(
        nn.Conv3d(3, 45, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(45),
        nn.ReLU(inplace=True),
        nn.Conv3d(45, 64, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
    )


def plain_stem() -> nn.Sequential:
    """3x7x7 convolution of spatial stride 2 to 64 channels, BatchNorm, ReLU [A]."""
    return nn.Sequential(
        nn.Conv3d(3, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
    )


class ClipResNet18(VideoEncoder):
    """f_E of 18 layers with the parameter names and shapes of the public weights, which load strictly.

    `temporal_stride_1`: the same parameters with temporal strides of 1, so that T frames give T time features and not
    T/8; for pre-training on short clips [C]. Frames of any size (112 in the paper).
    """

    def __init__(
        self, stem: nn.Sequential, convolution: Convolution, *, num_classes: int, temporal_stride_1: bool
    ) -> None:
        super().__init__()
        self.feature_dim, self.num_classes = WIDTHS[-1], num_classes
        time_stride = 1 if temporal_stride_1 else 2

        def layer(in_channels: int, channels: int, *, stride: int, time_stride: int) -> nn.Sequential:
            return nn.Sequential(
                ClipBlock(convolution, in_channels, channels, stride=stride, time_stride=time_stride),
                ClipBlock(convolution, channels, channels, stride=1, time_stride=1),
            )

        self.stem = stem
        self.layer1 = layer(64, 64, stride=1, time_stride=1)
        self.layer2 = layer(64, 128, stride=2, time_stride=time_stride)
        self.layer3 = layer(128, 256, stride=2, time_stride=time_stride)
        self.layer4 = layer(256, 512, stride=2, time_stride=time_stride)
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


class R2Plus1D18(ClipResNet18):
    """R(2+1)D-18 [P]: every convolution factored into space and time; 31,505,325 parameters with 400 classes."""

    def __init__(self, *, size: int, num_classes: int, temporal_stride_1: bool) -> None:
        del size
        super().__init__(factored_stem(), conv2plus1d, num_classes=num_classes, temporal_stride_1=temporal_stride_1)


class R3D18(ClipResNet18):
    """R3D-18 [A]: 3x3x3 convolutions; 33,371,472 parameters with 400 classes."""

    def __init__(self, *, size: int, num_classes: int, temporal_stride_1: bool) -> None:
        del size
        super().__init__(plain_stem(), conv3d, num_classes=num_classes, temporal_stride_1=temporal_stride_1)
