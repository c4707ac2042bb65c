"""From an architecture to a torch module with fresh weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from resnet_onnx.models import libraries
from resnet_onnx.models.configs import LibraryConfig, NetworkConfig, ResNetConfig, VGGConfig
from resnet_onnx.models.resnet import ResNet
from resnet_onnx.models.vgg import VGG
from runtimes.errors import UsageError


def build(
    config: NetworkConfig, *, generator: torch.Generator | None = None, stochastic_depth: float = 0.0
) -> nn.Module:
    """Builds a network with fresh weights: He-initialised, or as its library initialises it.

    `generator` is the source of randomness; None takes torch's global one. `stochastic_depth` is for training: the
    share of pictures for which the last residual branch is left out (arXiv:1603.09382).

    Returns:
        A float32 module on the CPU in training mode, from [batch, channel, height, width] to [batch, class];
        parameters and buffers are named as torchvision names them, or as the library does.

    Raises:
        UsageError: The network has no residual branches to leave out, or its library can't build it.
    """
    if isinstance(config, LibraryConfig):
        if generator is None:
            return libraries.build_module(config, stochastic_depth=stochastic_depth)
        with torch.random.fork_rng(devices=[]):  # the library draws from the global state
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            return libraries.build_module(config, stochastic_depth=stochastic_depth)
    module = _skeleton(config, stochastic_depth).to_empty(device="cpu")
    he_initialise(module, generator=generator)
    return module


def build_empty(config: NetworkConfig) -> nn.Module:
    """Builds a network on the CPU whose weights are still to be filled in; draws no random number."""
    if isinstance(config, LibraryConfig):  # what it keeps outside its state dict must be there (a blur's filter)
        with torch.random.fork_rng(devices=[]):
            return libraries.build_module(config)
    return build_skeleton(config).to_empty(device="cpu")


def build_skeleton(config: NetworkConfig) -> nn.Module:
    """Builds a network on torch's meta device: names and shapes, no memory."""
    if isinstance(config, LibraryConfig):
        return libraries.build_skeleton(config)
    return _skeleton(config)


def _skeleton(config: ResNetConfig | VGGConfig, stochastic_depth: float = 0.0) -> nn.Module:
    if stochastic_depth and (isinstance(config, VGGConfig) or config.shortcut == "none"):
        raise UsageError("stochastic depth leaves out residual branches, and this network has no shortcuts")
    with torch.device("meta"):
        return ResNet(config, stochastic_depth=stochastic_depth) if isinstance(config, ResNetConfig) else VGG(config)


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
