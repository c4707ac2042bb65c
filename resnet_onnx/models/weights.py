"""Weights from a seed, and keeping weights in the cache by content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resnet_onnx.models.build import build, build_empty
from resnet_onnx.models.configs import LibraryConfig, NetworkConfig, ResNetConfig
from resnet_onnx.models.fitting import check_exact, classifier_name
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.models.resnet import ResidualBlock
from resnet_onnx.models.weights_file import StateDict, read_safetensors
from runtimes import files
from runtimes.errors import BadWeights, UsageError

_PICTURES_AT_ONCE = 16


# ---- making ---------------------------------------------------------------------------------------------------------


def random_state_dict(
    config: NetworkConfig, preprocessing: Preprocessing, *, seed: int, pictures: NDArray[np.uint8]
) -> StateDict:
    """Draws initial weights (He's, or a library's own); pictures set batch norm's statistics and the classifier's bias.

    Without the statistics the activations of a deep random net grow from block to block until nothing measured on it
    means anything. The bias makes the logits average to zero over the pictures: without it they hardly depend on the
    picture, every picture gets the same class, and an agreement of classes proves nothing. (Plain nets keep theirs at
    zero: after 34 layers and more without shortcuts so little of a random picture is left that only noise would stay.)
    And the scales and shifts of ``_calm`` keep rounding errors the size that they have in a trained net.

    torch's global random state is neither used nor changed. The same seed and pictures give the same weights on one
    machine with one number of threads.

    Args:
        config: The architecture.
        preprocessing: From `pictures` to the network's input.
        seed: Of the weights.
        pictures: uint8 [picture, height, width, 3], RGB, two or more.

    Raises:
        UsageError: `pictures` has another shape or dtype.
    """
    if pictures.ndim != 4 or pictures.dtype != np.uint8 or pictures.shape[-1] != 3 or len(pictures) < 2:
        raise UsageError(
            f"batch-norm statistics need uint8 [≥2, height, width, 3], not {pictures.dtype} {list(pictures.shape)}"
        )
    generator = torch.Generator().manual_seed(seed)
    network = build(config, generator=generator).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if isinstance(config, LibraryConfig):
        _calm_library(network, generator)
    else:
        _calm(network)
    for norm in norms:
        norm.train()  # the norms alone: dropout would draw from the global random state
        norm.momentum = None  # a plain average over the batches
    logits = []
    with torch.inference_mode():
        for start in range(0, len(pictures), _PICTURES_AT_ONCE):
            batch = pictures[start : start + _PICTURES_AT_ONCE]
            if len(batch) > 1:  # a deep net can leave one value per channel of a single small picture: no variance
                logits.append(network(torch.from_numpy(preprocessing.normalise(batch))))
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    bias = f"{classifier_name(config)}.bias"
    if bias in state and not (isinstance(config, ResNetConfig) and config.shortcut == "none"):
        state[bias] = state[bias] - torch.cat(logits).mean(dim=0)
    return state


_LAST_SCALE, _PLAIN_SHIFT, _DEEP_PLAIN_SHIFT = 0.1, 1.0, 1.5
"""Batch norm's scale at the end of a residual block and its shift in a plain net, for random weights."""
_DEEP_PLAIN_BLOCKS = 27  # cifar-plain56


@torch.no_grad()
def _calm(network: nn.Module) -> None:
    """Sets batch norm's scales and shifts so that a random net does not amplify rounding errors.

    With scale 1 and shift 0 everywhere a deep random net is chaotic: every layer divides by the small spread that is
    left between pictures, and float32's noise on photos grows to 7e-4 relative RMSE in ResNet-152 and 4e-5 in plain-34.
    Trained nets show 5e-7 to 1e-6. A scale of 0.1 at the end of each residual block gives 7e-7 in ResNet-152 (in
    training, arXiv:1706.02677, section 5.1, starts it at 0); a shift of 1 in plain nets, which leaves more of every
    ReLU linear, gives 6e-7 in plain-34, and one of 1.5 serves beyond 56 layers.
    """
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    shift = _PLAIN_SHIFT if len(blocks) <= _DEEP_PLAIN_BLOCKS else _DEEP_PLAIN_SHIFT
    for module in blocks:
        if module.downsample is not None:
            module.last.weight.mul_(_LAST_SCALE)  # of a batch norm, 1 so far
        else:
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    nn.init.constant_(norm.bias, shift)


@torch.no_grad()
def _calm_library(network: nn.Module, generator: torch.Generator) -> None:
    """Makes a library's freshly initialised network one that random weights prove something about.

    timm can start the last scale (or, before activation, the last convolution) of every residual branch at zero: the
    branch then computes nothing, and a wrong export of it would go unnoticed. Where it is left at one, as torchvision
    leaves it, rounding errors grow from block to block. All get what ``_calm`` gives the catalog's networks.
    """
    for block in network.modules():
        silence: Any = getattr(block, "zero_init_last", None)
        if silence is None:
            continue
        before = {name: parameter.clone() for name, parameter in block.named_parameters()}
        silence()
        for name, parameter in block.named_parameters():
            if parameter.any() or not name.endswith("weight"):
                continue
            if not before[name].any():
                fresh = before[name]
                if fresh.ndim > 1:
                    nn.init.kaiming_normal_(fresh, generator=generator)
                else:
                    nn.init.ones_(fresh)
            parameter.copy_(before[name] * _LAST_SCALE)
    for norm in _torchvisions_last_norms(network):
        nn.init.constant_(norm.weight, _LAST_SCALE)


def _torchvisions_last_norms(network: nn.Module) -> Iterator[Any]:
    """Yields the batch norms that end the residual branches of torchvision's ResNets and RegNets."""
    from torchvision.models import regnet, resnet

    for part in network.modules():
        if isinstance(part, resnet.BasicBlock):
            yield part.bn2
        elif isinstance(part, resnet.Bottleneck):
            yield part.bn3
        elif isinstance(part, regnet.ResBottleneckBlock):
            yield part.f.c[1]


# ---- keeping --------------------------------------------------------------------------------------------------------


def store_state_dict(state: Mapping[str, Tensor]) -> tuple[Path, str]:
    """Writes weights into the cache as safetensors, under their own hash.

    Returns:
        The file and its SHA-256.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return files.store_by_content(
        "weights", ".safetensors", lambda path: safetensors.torch.save_file(plain, path, metadata={"format": "pt"})
    )


def load_network(config: NetworkConfig, weights: Path, *, sha256: str | None = None) -> nn.Module:
    """Builds a network and fills in weights that were written for exactly this architecture.

    Args:
        config: The architecture.
        weights: A safetensors file as ``store_state_dict`` or a checkpoint writes it.
        sha256: What the file must hash to; None takes any.

    Returns:
        A float32 module on the CPU in eval mode.

    Raises:
        BadWeights: The file is missing or damaged, is another than was recorded, or does not fit.
    """
    if not weights.is_file():
        raise BadWeights(f"the weights {weights} are gone", fix="pass the weights again: --weights PATH")
    if sha256 is not None and files.sha256_file(weights) != sha256:
        raise BadWeights(f"the weights {weights} are damaged: their SHA-256 is not the recorded {sha256[:16]}…")
    state = read_safetensors(weights)
    check_exact(config, state, origin=str(weights))
    network = build_empty(config)
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in state or state[name].dtype != tensor.dtype:
            found = str(state[name].dtype) if name in state else "missing"
            raise BadWeights(f"{weights}: '{name}' is {found}, expected {tensor.dtype}")
    network.load_state_dict(state, strict=True)
    return network.eval()
