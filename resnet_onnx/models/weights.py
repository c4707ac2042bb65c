"""Weights from torchvision's server or from a seed, and keeping them in the cache by content."""

from __future__ import annotations

import http.client
import re
import socket
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resnet_onnx.models import catalog
from resnet_onnx.models.build import build, build_empty
from resnet_onnx.models.configs import NetworkConfig, ResNetConfig
from resnet_onnx.models.fitting import check_exact, classifier_name, fit
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.models.resnet import BasicBlock, Bottleneck
from resnet_onnx.models.weights_file import StateDict, read_safetensors, read_weights_file
from runtimes import files
from runtimes.errors import BadWeights, FileProblem, NetworkUnavailable, UsageError

_PICTURES_AT_ONCE = 16
_SILENCE_SECONDS = 30.0  # of the server, before a download counts as failed


# ---- making ---------------------------------------------------------------------------------------------------------


def random_state_dict(
    config: NetworkConfig, preprocessing: Preprocessing, *, seed: int, pictures: NDArray[np.uint8]
) -> StateDict:
    """Draws He-initialised weights; running pictures through sets batch-norm statistics and the classifier's bias.

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
    network = build(config, generator=torch.Generator().manual_seed(seed)).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
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
    if not (isinstance(config, ResNetConfig) and config.shortcut == "none"):
        state[f"{classifier_name(config)}.bias"] = -torch.cat(logits).mean(dim=0)
    return state


_LAST_SCALE, _PLAIN_SHIFT, _DEEP_PLAIN_SHIFT = 0.1, 1.0, 1.5
"""Batch norm's scale at the end of a residual block and its shift in a plain net, for random weights."""
_DEEP_PLAIN_BLOCKS = 27  # cifar-plain56


def _calm(network: nn.Module) -> None:
    """Sets batch norm's scales and shifts so that a random net does not amplify rounding errors.

    With scale 1 and shift 0 everywhere a deep random net is chaotic: every layer divides by the small spread that is
    left between pictures, and float32's noise on photos grows to 7e-4 relative RMSE in ResNet-152 and 4e-5 in plain-34.
    Trained nets show 5e-7 to 1e-6. A scale of 0.1 at the end of each residual block gives 7e-7 in ResNet-152 (in
    training, arXiv:1706.02677, section 5.1, starts it at 0); a shift of 1 in plain nets, which leaves more of every
    ReLU linear, gives 6e-7 in plain-34, and one of 1.5 serves beyond 56 layers.
    """
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
    shift = _PLAIN_SHIFT if len(blocks) <= _DEEP_PLAIN_BLOCKS else _DEEP_PLAIN_SHIFT
    for module in blocks:
        if module.downsample is not None:
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.constant_(last.weight, _LAST_SCALE)
        else:
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    nn.init.constant_(norm.bias, shift)


def imagenet_state_dict(entry: catalog.CatalogEntry, *, progress: bool = False) -> StateDict:
    """Downloads torchvision's trained weights for a network of the catalog, or takes them from the cache.

    Args:
        entry: The network.
        progress: Whether torch draws its progress bar on stderr.

    Returns:
        The complete state dict, float32.

    Raises:
        UsageError: torchvision has no weights for exactly this network.
        NetworkUnavailable: The server can't be reached.
        BadWeights: What was downloaded is not what torchvision published.
    """
    from torchvision.models import get_weight

    pretrained = entry.pretrained
    if pretrained is None:
        raise UsageError(f"there are no ImageNet weights for {entry.name}", fix=_where_weights_are(entry))
    weights = get_weight(pretrained.enum_name)
    url = str(weights.url)
    folder = files.cache_dir("downloads")
    cached = folder / url.rsplit("/", 1)[-1]
    published = re.search(r"-([0-9a-f]{8,64})\.", cached.name)
    if published is None:
        raise BadWeights(f"torchvision's address {url} names no hash to check the download by")
    # torch checks the hash of a download, but not of a file that is already there.
    if cached.exists() and not files.sha256_file(cached).startswith(published[1]):
        cached.unlink()
    with _told_plainly(url, entry):
        weights.get_state_dict(progress=progress, check_hash=True, model_dir=str(folder), weights_only=True)
    return dict(fit(entry.config, replace(read_weights_file(cached), origin=pretrained.enum_name)).state)


def _where_weights_are(entry: catalog.CatalogEntry) -> str:
    config = entry.config
    if isinstance(config, ResNetConfig) and config.block == "bottleneck" and config.variant == "v1":
        return f"torchvision's are for v1.5: use {entry.name.removesuffix('-v1')}, or pass a file: --weights PATH"
    have = ", ".join(name for name in catalog.names() if catalog.lookup(name).pretrained)
    return f"pass a file: --weights PATH; torchvision has weights for {have}"


@contextmanager
def _told_plainly(url: str, entry: catalog.CatalogEntry) -> Iterator[None]:
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_SECONDS)
    try:
        yield
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(error, urllib.error.HTTPError):
            reason = f"HTTP {error.code}"
            error.close()
        raise NetworkUnavailable(
            f"can't download the ImageNet weights of {entry.name}: "
            f"there is no network, or {url} does not answer ({reason})",
            fix=f"download that file elsewhere and pass it: --weights {url.rsplit('/', 1)[-1]}",
        ) from error
    except RuntimeError as error:
        if "invalid hash" not in str(error):
            raise
        raise BadWeights(
            f"what {url} sent is not what torchvision published: the SHA-256 differs",
            fix="try again; if it stays so, something between here and the server changes files",
        ) from error
    except OSError as error:
        raise FileProblem(f"can't store the download of {url}: {error.strerror or error}") from error
    finally:
        socket.setdefaulttimeout(patience)


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
