"""From an architecture to a torch module with fresh weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from resnet_onnx.models.configs import NetworkConfig, ResNetConfig
from resnet_onnx.models.resnet import ResNet
from resnet_onnx.models.vgg import VGG


def build(config: NetworkConfig, *, generator: torch.Generator | None = None) -> nn.Module:
    """Builds a network with He-initialised weights.

    `generator` is the source of randomness; None takes torch's global one.

    Returns:
        A float32 module on the CPU in training mode, from [batch, channel, height, width] to [batch, class];
        parameters and buffers are named as torchvision names them.
    """
    module = build_empty(config)
    he_initialise(module, generator=generator)
    return module


def build_empty(config: NetworkConfig) -> nn.Module:
    """Builds a network on the CPU whose weights are still to be filled in; draws no random number."""
    return build_skeleton(config).to_empty(device="cpu")


def build_skeleton(config: NetworkConfig) -> nn.Module:
    """Builds a network on torch's meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return ResNet(config) if isinstance(config, ResNetConfig) else VGG(config)


@torch.no_grad()
def he_initialise(module: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Sets every weight by He et al. (arXiv:1502.01852, equation 10): zero-mean normal, variance 2/fan-in.

    A linear layer that no ReLU follows (the classifier) gets variance 1/fan-in (equation 7 without the ReLU's half),
    so that logits keep the scale of what they are made from. Biases are 0; batch norm starts as the identity.

    `module`, a network of this package on any device but meta, is changed in place; `generator` as for ``build``.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        follows: Literal["linear", "relu"] = "linear" if layer is layers[-1] else "relu"
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity=follows, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_parameters()
