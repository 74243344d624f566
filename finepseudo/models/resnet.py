"""ResNet-18 per frame and the blocks of R(2+1)D-18, with the parameter names of the public weights.

Axes: B batch, T frames, C channels, H W pixels, N = B*T frames of all clips.
"""

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)  # channels of layer1 to layer4; two blocks each


def init_weights(module: nn.Module) -> None:
    """He's normal initialisation for convolutions; normalisation layers keep 1 and 0 [A]."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


class FrameBlock(nn.Module):
    """Basic residual block: two 3x3 convolutions with BatchNorm, and a 1x1 short cut where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            short_cut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(short_cut, nn.BatchNorm2d(channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x_NCHW)))))
        return self.relu(y_NCHW + (x_NCHW if self.downsample is None else self.downsample(x_NCHW)))


class ResNet18(nn.Module):
    """ResNet-18 without its classifier: frame_NCHW -> feat_NC with C = 512, the mean over positions.

    Names and shapes are those of the well-known public weights, less `fc.*` (11,176,512 parameters).
    """

    width = WIDTHS[-1]

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(FrameBlock(64, 64, 1), FrameBlock(64, 64, 1))
        self.layer2 = nn.Sequential(FrameBlock(64, 128, 2), FrameBlock(128, 128, 1))
        self.layer3 = nn.Sequential(FrameBlock(128, 256, 2), FrameBlock(256, 256, 1))
        self.layer4 = nn.Sequential(FrameBlock(256, 512, 2), FrameBlock(512, 512, 1))
        init_weights(self)

    def forward(self, frame_NCHW: Tensor) -> Tensor:
        x_NCHW = self.maxpool(self.relu(self.bn1(self.conv1(frame_NCHW))))
        x_NCHW = self.layer4(self.layer3(self.layer2(self.layer1(x_NCHW))))
        return x_NCHW.mean(dim=(2, 3))


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


class ClipBlock(nn.Module):
    """Basic residual block of R(2+1)D: two factored convolutions that share one middle width [A]."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, time_stride: int) -> None:
        super().__init__()
        middle = factored_width(in_channels, channels)
        first = conv2plus1d(in_channels, channels, middle, stride=stride, time_stride=time_stride)
        second = conv2plus1d(channels, channels, middle, stride=1, time_stride=1)
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


def clip_stem() -> nn.Sequential:
    """1x7x7 convolution of stride 2 to 45 channels, 3x1x1 convolution to 64, each with BatchNorm and ReLU [A]."""
    return nn.Sequential(
        nn.Conv3d(3, 45, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(45),
        nn.ReLU(inplace=True),
        nn.Conv3d(45, 64, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
    )


def clip_layer(in_channels: int, channels: int, *, stride: int, time_stride: int) -> nn.Sequential:
    return nn.Sequential(
        ClipBlock(in_channels, channels, stride=stride, time_stride=time_stride),
        ClipBlock(channels, channels, stride=1, time_stride=1),
    )
