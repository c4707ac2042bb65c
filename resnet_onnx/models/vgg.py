"""VGG-16 and VGG-19 without batch normalisation (arXiv:1409.1556, table 1, columns D and E).

Shapes are written with B pictures in a batch, C channels, H×W pixels and K classes. Parameter names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from resnet_onnx.models.configs import VGGConfig

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS: Mapping[int, tuple[int, ...]] = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_POOLED = 7  # side of the feature map that the first fully connected layer sees
_HIDDEN = 4096


class VGG(nn.Module):
    """Five stages of 3×3 convolutions, each ended by a 2×2 max-pool, then three fully connected layers."""

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        self.config = config
        features: list[nn.Module] = []
        channels = config.in_channels
        for width, convolutions in zip(_WIDTHS, _CONVOLUTIONS[config.depth], strict=True):
            for _ in range(convolutions):
                features += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            features.append(nn.MaxPool2d(2, stride=2))
        self.features = nn.Sequential(*features)
        # Leaves the 7×7 of a 224-pixel picture as it is; lets the same weights take other sizes, as torchvision does.
        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
        self.classifier = nn.Sequential(
            nn.Linear(channels * _POOLED * _POOLED, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(_HIDDEN, config.num_classes),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised pictures [B, C, H, W] to logits [B, K]."""
        x = self.features(pictures)  # [B, 512, H/32, W/32]
        x = torch.flatten(self.avgpool(x), 1)  # [B, 512·7·7]
        return cast(Tensor, self.classifier(x))

    def fully_convolutional(self) -> FullyConvolutionalVGG:
        """Returns the same function for pictures of any size, from 224 pixels on; it shares this network's weights."""
        return FullyConvolutionalVGG(self)


class FullyConvolutionalVGG(nn.Module):
    """VGG on whole pictures (arXiv:1409.1556, section 3.2): the fully connected layers slide over the features.

    The first one becomes a 7×7 convolution, the others 1×1 convolutions, and the scores of all positions are averaged.
    On 224 pixels there is one position, and the function is that of `vgg`, whose weights are used in place.
    """

    def __init__(self, vgg: VGG) -> None:
        super().__init__()
        self.features = vgg.features
        layers: list[nn.Module] = []
        channels, side = _WIDTHS[-1], _POOLED
        for layer in vgg.classifier:
            if isinstance(layer, nn.Linear):
                sliding = nn.Conv2d(channels, layer.out_features, side, device="meta")  # its weights are not its own
                sliding.weight = nn.Parameter(layer.weight.detach().view(-1, channels, side, side))
                sliding.bias = layer.bias
                layers.append(sliding)
                channels, side = layer.out_features, 1
            else:
                layers.append(layer)
        self.classifier = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised pictures [B, C, H, W], H and W at least 224, to logits [B, K]."""
        x = self.features(pictures)  # [B, 512, H/32, W/32]
        x = self.classifier(x)  # [B, K, H/32 − 6, W/32 − 6]
        return torch.mean(x, dim=(2, 3))
