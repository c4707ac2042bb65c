"""Residual networks (arXiv:1512.03385) for ImageNet and CIFAR, and their plain counterparts.

Shapes are written with B pictures in a batch, C channels, H×W pixels, W for the width of a stage, E for the expansion
of its blocks (1 for basic, 4 for bottleneck), S for the stride and K classes. Parameter names are torchvision's.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_onnx.models.configs import EXPANSION, Block, ResNetConfig, Shortcut, Variant


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut (figure 5, left).

    Args:
        in_channels: C.
        width: W.
        stride: S, of the first convolution.
        downsample: The shortcut from [B, C, H, W] to [B, W, H/S, W/S]; None makes a plain block.
    """

    def __init__(self, in_channels: int, width: int, *, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, W, H/S, W/S]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            out = out + self.downsample(x)
        return cast(Tensor, self.relu(out))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut (figure 5, right).

    Args:
        in_channels: C.
        width: W, of the 3×3 convolution; 4·W channels go out.
        stride: S.
        variant: ``"v1"`` strides in the first 1×1, ``"v1.5"`` in the 3×3.
        downsample: The shortcut from [B, C, H, W] to [B, 4·W, H/S, W/S]; None makes a plain block.
    """

    def __init__(
        self, in_channels: int, width: int, *, stride: int, variant: Variant, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        out_channels = EXPANSION["bottleneck"] * width
        first, second = (stride, 1) if variant == "v1" else (1, stride)
        self.conv1 = _conv1x1(in_channels, width, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, second)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, 4·W, H/S, W/S]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            out = out + self.downsample(x)
        return cast(Tensor, self.relu(out))


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


def _shortcut(option: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Returns the shortcut of one block by the paper's options (section 4.1), None for a plain net."""
    if option == "none":
        return None
    keeps_shape = stride == 1 and in_channels == out_channels
    if keeps_shape and option != "C":
        return nn.Identity()
    if option == "A":
        return ZeroPadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """Stem, stages, average pool, classifier (table 1; section 4.2 for CIFAR)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        first = config.widths[0]
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(config.in_channels, first, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = _conv3x3(config.in_channels, first)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)

        channels = first
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(config.layers) + 1))
        for number, (name, width, blocks) in enumerate(
            zip(self.stage_names, config.widths, config.layers, strict=True)
        ):
            stage = [_block(config, channels, width, stride=1 if number == 0 else 2)]
            channels = EXPANSION[config.block] * width
            stage += [_block(config, channels, width, stride=1) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(*stage))
        self.fc = nn.Linear(channels, config.num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised pictures [B, C, H, W] to logits [B, K]."""
        x = self.relu(self.bn1(self.conv1(pictures)))  # ImageNet [B, 64, H/2, W/2], CIFAR [B, 16, H, W]
        x = self.maxpool(x)  # ImageNet [B, 64, H/4, W/4]
        for name in self.stage_names:  # every stage but the first halves H and W and doubles the channels
            x = self.get_submodule(name)(x)
        x = torch.mean(x, dim=(2, 3))  # [B, E·W]
        return cast(Tensor, self.fc(x))


def _block(config: ResNetConfig, in_channels: int, width: int, *, stride: int) -> BasicBlock | Bottleneck:
    block: Block = config.block
    downsample = _shortcut(config.shortcut, in_channels, EXPANSION[block] * width, stride)
    if block == "basic":
        return BasicBlock(in_channels, width, stride=stride, downsample=downsample)
    return Bottleneck(in_channels, width, stride=stride, variant=config.variant, downsample=downsample)
