"""ResNets per frame, with the parameter names of the public weights, and f_A on top of them.

Axes: B batch, T frames, C channels, H W pixels, F features, N = B*T frames of all clips.
"""

from __future__ import annotations

from torch import Tensor, nn

from finepseudo.models.encoders import VTN

WIDTHS = (64, 128, 256, 512)  # channels of layer1 to layer4


def init_weights(module: nn.Module) -> None:
    """He's normal initialisation for convolutions; normalisation layers keep 1 and 0 [A]."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def short_cut(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    """A 1x1 convolution with BatchNorm where the shape changes."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))


class FrameBlock(nn.Module):
    """Basic residual block: two 3x3 convolutions with BatchNorm, and a 1x1 short cut where the shape changes."""

    widening = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = short_cut(in_channels, channels, stride)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x_NCHW)))))
        return self.relu(y_NCHW + (x_NCHW if self.downsample is None else self.downsample(x_NCHW)))


class Bottleneck(nn.Module):
    """1x1 to `channels`, 3x3, 1x1 to four times as many, each with BatchNorm; the 3x3 one has the stride [A]."""

    widening = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = self.widening * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = short_cut(in_channels, wide, stride)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y_NCHW)))))
        return self.relu(y_NCHW + (x_NCHW if self.downsample is None else self.downsample(x_NCHW)))


class ResNet(nn.Module):
    """A ResNet without its classifier: frame_NCHW -> feat_NF, the mean over positions.

    Names and shapes are those of the well-known public weights, less `fc.*`.

    Args:
        block: FrameBlock or Bottleneck.
        depths: blocks of layer1 to layer4.
    """

    def __init__(self, block: type[FrameBlock | Bottleneck], depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.width = WIDTHS[-1] * block.widening
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        layers, channels = list[nn.Sequential](), 64
        for number, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
            blocks = list[nn.Module]()
            for place in range(depth):
                blocks.append(block(channels, width, 2 if number and not place else 1))
                channels = width * block.widening
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        init_weights(self)

    def forward(self, frame_NCHW: Tensor) -> Tensor:
        x_NCHW = self.maxpool(self.relu(self.bn1(self.conv1(frame_NCHW))))
        x_NCHW = self.layer4(self.layer3(self.layer2(self.layer1(x_NCHW))))
        return x_NCHW.mean(dim=(2, 3))


def resnet18() -> ResNet:
    """11,176,512 parameters."""
    return ResNet(FrameBlock, (2, 2, 2, 2))


def resnet50() -> ResNet:
    """23,508,032 parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3))


class VTNResNet18(VTN):
    """ResNet-18 per frame."""

    make_backbone = staticmethod(resnet18)


class VTNResNet50(VTN):
    """ResNet-50 per frame."""

    make_backbone = staticmethod(resnet50)
