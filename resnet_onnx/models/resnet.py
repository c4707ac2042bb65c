"""Residual networks and their descendants, for ImageNet and CIFAR, and the plain counterparts.

The networks of arXiv:1512.03385; pre-activation (arXiv:1603.05027), wide (arXiv:1605.07146) and aggregated (ResNeXt,
arXiv:1611.05431) residual networks; squeeze-and-excitation (arXiv:1709.01507), the stem and shortcut of ResNet-D
(arXiv:1812.01187), and stochastic depth in training (arXiv:1603.09382). A figure or table without a paper is
arXiv:1512.03385's.

Shapes are written with B pictures in a batch, C channels, H×W pixels, W for the width of a stage, E for the expansion
of its blocks (1 for basic, 4 for bottleneck), S for the stride and K classes. Parameter names are torchvision's, and
timm's where torchvision has no such layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_onnx.models.configs import EXPANSION, Block, ResNetConfig


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class SqueezeExcitation(nn.Module):
    """Scales every channel by what all channels average to (arXiv:1709.01507, section 3).

    Args:
        channels: C.
        reduction: C / reduction features lie between the two fully connected layers, written as 1×1 convolutions.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C, H, W]."""
        squeezed = x.mean((2, 3), keepdim=True)  # [B, C, 1, 1]
        return x * torch.sigmoid(self.fc2(self.relu(self.fc1(squeezed))))


class ResidualBlock(nn.Module):
    """What all blocks share: the shortcut around a branch, from C = `in_channels` with S = `stride`."""

    downsample: nn.Module | None
    se: SqueezeExcitation | None
    dropped = 0.0
    """Share of the pictures of a step for which the branch is left out in training."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def surround(self, config: ResNetConfig, in_channels: int, width: int, stride: int) -> None:
        """Lays the shortcut around the branch, once that is made."""
        out_channels = EXPANSION[config.block] * width
        self.downsample = _shortcut(config, in_channels, out_channels, stride)
        self.se = SqueezeExcitation(out_channels, config.squeeze) if config.squeeze else None

    def added(self, branch: Tensor, x: Tensor) -> Tensor:
        """Adds the shortcut of x [B, C, H, W] to a branch [B, E·W, H/S, W/S]; a plain block has none."""
        if self.se is not None:
            branch = self.se(branch)
        if self.training and self.dropped:
            kept = torch.rand(len(branch), 1, 1, 1, dtype=branch.dtype, device=branch.device) >= self.dropped
            branch = branch * kept / (1 - self.dropped)
        return branch if self.downsample is None else branch + self.downsample(x)

    @property
    def last(self) -> nn.BatchNorm2d | nn.Conv2d:
        """The layer that sets the size of the branch."""
        raise NotImplementedError


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions around a shortcut (figure 5, left); the first one has the stride."""

    def __init__(self, config: ResNetConfig, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.surround(config, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, W, H/S, W/S]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return cast(Tensor, self.relu(self.added(out, x)))

    @property
    def last(self) -> nn.BatchNorm2d | nn.Conv2d:
        """Batch norm after the second convolution."""
        return self.bn2


class Bottleneck(ResidualBlock):
    """1×1, 3×3 and 1×1 convolutions around a shortcut (figure 5, right).

    The variant v1 strides in the first 1×1, v1.5 in the 3×3. That is wider in a wide network (arXiv:1605.07146, table
    8) and has groups in a ResNeXt (arXiv:1611.05431, figure 3c).
    """

    def __init__(self, config: ResNetConfig, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        inner, out_channels = config.inner_width(width), EXPANSION["bottleneck"] * width
        before, within = (stride, 1) if config.variant == "v1" else (1, stride)
        self.conv1 = _conv1x1(in_channels, inner, before)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv3x3(inner, inner, within, config.groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _conv1x1(inner, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.surround(config, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, 4·W, H/S, W/S]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return cast(Tensor, self.relu(self.added(out, x)))

    @property
    def last(self) -> nn.BatchNorm2d | nn.Conv2d:
        """Batch norm after the third convolution."""
        return self.bn3


class PreActivationBlock(ResidualBlock):
    """A block whose convolutions come after their batch norm and ReLU (arXiv:1603.05027, figure 4e).

    Nothing is done to the sum, so that an identity shortcut carries a signal unchanged through all blocks. Any other
    shortcut, and that of the network's first block, starts behind the first activation (the paper's appendix).
    """

    bn1: nn.BatchNorm2d
    first = False
    """Whether it is the first block of the network."""

    def activated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the branch starts from, and what the shortcut starts from."""
        active = self.relu(self.bn1(x))
        return active, x if isinstance(self.downsample, nn.Identity) and not self.first else active


class PreActivationBasicBlock(PreActivationBlock):
    """Two 3×3 convolutions; the first one has the stride."""

    def __init__(self, config: ResNetConfig, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.surround(config, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, W, H/S, W/S]."""
        active, shortcut = self.activated(x)
        out = self.conv1(active)
        out = self.conv2(self.relu(self.bn2(out)))
        return self.added(out, shortcut)

    @property
    def last(self) -> nn.BatchNorm2d | nn.Conv2d:
        """The second convolution."""
        return self.conv2


class PreActivationBottleneck(PreActivationBlock):
    """1×1, 3×3 and 1×1 convolutions; the variant says which one has the stride."""

    def __init__(self, config: ResNetConfig, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        inner = config.inner_width(width)
        before, within = (stride, 1) if config.variant == "v1" else (1, stride)
        self.conv1 = _conv1x1(in_channels, inner, before)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = _conv3x3(inner, inner, within, config.groups)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = _conv1x1(inner, EXPANSION["bottleneck"] * width)
        self.surround(config, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, 4·W, H/S, W/S]."""
        active, shortcut = self.activated(x)
        out = self.conv1(active)
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return self.added(out, shortcut)

    @property
    def last(self) -> nn.BatchNorm2d | nn.Conv2d:
        """The third convolution."""
        return self.conv3


class ZeroPadShortcut(nn.Module):
    """Shortcut option A: every S-th pixel, and zeros for the channels that are new. Has no parameters.

    The paper does not say where the zero channels go; they are split evenly before and after, as in the published
    CIFAR weights of akamaster/pytorch_resnet_cifar10.

    Args:
        in_channels: C.
        out_channels: D, at least C.
        stride: S.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, D, H/S, W/S]."""
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, self.before, self.after))


def _shortcut(config: ResNetConfig, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Returns the shortcut of one block by the paper's options (section 4.1), None for a plain net.

    Option D averages 2×2 pixels where B leaves three of four out (arXiv:1812.01187, figure 2c). Before activation
    there is no batch norm on a shortcut: the next block begins with one.
    """
    if config.shortcut == "none":
        return None
    keeps_shape = stride == 1 and in_channels == out_channels
    if keeps_shape and config.shortcut != "C":
        return nn.Identity()
    if config.shortcut == "A":
        return ZeroPadShortcut(in_channels, out_channels, stride)
    layers: list[nn.Module] = []
    if config.shortcut == "D":
        layers.append(nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity())
        stride = 1
    layers.append(_conv1x1(in_channels, out_channels, stride))
    if not config.pre_activation:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


def _stem(config: ResNetConfig) -> tuple[nn.Module, nn.Module]:
    """Returns the first convolution, or the three of ResNet-C and D (arXiv:1812.01187, figure 2b), and the pooling."""
    width = config.first_width
    if config.stem == "cifar":
        return _conv3x3(config.in_channels, width), nn.Identity()
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    if config.stem == "imagenet":
        return nn.Conv2d(config.in_channels, width, 7, stride=2, padding=3, bias=False), pool
    half = width // 2
    return nn.Sequential(
        _conv3x3(config.in_channels, half, 2),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        _conv3x3(half, half),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        _conv3x3(half, width),
    ), pool


_BLOCKS: Mapping[tuple[Block, bool], Callable[..., ResidualBlock]] = {
    ("basic", False): BasicBlock,
    ("bottleneck", False): Bottleneck,
    ("basic", True): PreActivationBasicBlock,
    ("bottleneck", True): PreActivationBottleneck,
}
"""By kind, and whether activation comes first."""


class ResNet(nn.Module):
    """Stem, stages, average pool, classifier (table 1; section 4.2 for CIFAR).

    Before activation the stem is a bare convolution, and batch norm and ReLU follow the last block.

    Args:
        config: The architecture.
        stochastic_depth: Share of the pictures of a step for which the branch of the last block is left out in
            training; it falls linearly to none for the input of the first block (arXiv:1603.09382, equation 4).
    """

    def __init__(self, config: ResNetConfig, *, stochastic_depth: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.conv1, self.maxpool = _stem(config)
        self.bn1 = nn.Identity() if config.pre_activation else nn.BatchNorm2d(config.first_width)
        self.relu = nn.ReLU(inplace=True)

        channels = config.first_width
        make = _BLOCKS[config.block, config.pre_activation]
        total = sum(config.layers)
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(config.layers) + 1))
        done = 0
        for stage, (width, blocks) in enumerate(zip(config.widths, config.layers, strict=True)):
            made = []
            for number in range(blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                block = make(config, channels, width, stride=stride)
                if isinstance(block, PreActivationBlock):
                    block.first = done == 0
                done += 1
                block.dropped = stochastic_depth * done / total
                channels = EXPANSION[config.block] * width
                made.append(block)
            self.add_module(self.stage_names[stage], nn.Sequential(*made))
        self.norm = nn.BatchNorm2d(channels) if config.pre_activation else nn.Identity()
        self.fc = nn.Linear(channels, config.num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised pictures [B, C, H, W] to logits [B, K]."""
        x = self.conv1(pictures)  # ImageNet [B, 64, H/2, W/2], CIFAR [B, 16, H, W]
        if not self.config.pre_activation:
            x = self.relu(self.bn1(x))
        x = self.maxpool(x)  # ImageNet [B, 64, H/4, W/4]
        for name in self.stage_names:  # every stage but the first halves H and W and doubles the channels
            x = self.get_submodule(name)(x)
        if self.config.pre_activation:
            x = self.relu(self.norm(x))
        x = torch.mean(x, dim=(2, 3))  # [B, E·W]
        return cast(Tensor, self.fc(x))
