"""Weights from files, from torchvision's server or from a seed, fitted to an architecture; loading never runs code."""

from __future__ import annotations

import argparse
import http.client
import re
import socket
import urllib.error
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
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
from resnet_onnx.models.build import build, build_empty, build_skeleton
from resnet_onnx.models.configs import SHORTCUT_OPTIONS, NetworkConfig, ResNetConfig, VGGConfig, with_classes
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.models.resnet import BasicBlock, Bottleneck
from runtimes import files
from runtimes.errors import BadWeights, FileProblem, NetworkUnavailable, UsageError

StateDict = dict[str, Tensor]
"""Tensors by name."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema")
"""Where training scripts put the state dict in their checkpoints; of several, the first that holds tensors is taken."""

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.")
"""What wrappers put before every name: DataParallel, torch.compile, Lightning and the like."""

_BATCHES_TRACKED = ".num_batches_tracked"
_NAMED_IN_MESSAGE = 3
_PICTURES_AT_ONCE = 16
_SILENCE_SECONDS = 30.0  # of the server, before a download counts as failed
_FETCH_AGAIN = "download or copy it again, and compare sizes"
_RESAVE = "save the weights alone where they were made: safetensors.torch.save_file(model.state_dict(), PATH)"


# ---- reading --------------------------------------------------------------------------------------------------------


def read_state_dict(path: Path) -> StateDict:
    """Reads a weights file: safetensors, or what ``torch.save`` writes.

    The format is recognised by content, not by the file's ending. Pickles are read by torch's restricted reader, which
    builds tensors and plain values and refuses everything else. Names are left as they are, but a checkpoint's wrapper
    (`WRAPPERS`) is taken off.

    Args:
        path: The file.

    Returns:
        The tensors by name, on the CPU, in their own dtypes.

    Raises:
        BadWeights: The file is missing, empty, damaged, of another format, hostile, or holds no tensors.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise BadWeights(f"{path} is a folder, expected a weights file (.pth, .th, .pt or .safetensors)")
        size_bytes = path.stat().st_size
        with open(path, "rb") as handle:
            head = handle.read(16)
    except OSError as error:
        raise BadWeights(f"can't read the weights {path}: {error.strerror or error}", fix="check the path") from error
    if size_bytes == 0:
        raise BadWeights(f"{path} is empty, expected weights", fix=_FETCH_AGAIN)
    if head[:2] == b"PK":
        _check_archive(path)
        tensors = _tensors_of(_read_pickle(path), path)
    elif head[:1] == b"\x80":
        tensors = _tensors_of(_read_pickle(path), path)
    elif head[8:9] == b"{":
        tensors = _read_safetensors(path)
    else:
        raise BadWeights(
            f"{path} is not a weights file: expected safetensors or a PyTorch state dict (.pth, .th, .pt)",
            fix="an .onnx file or a checkpoint folder goes in as the model itself, without --model"
            if path.suffix == ".onnx"
            else None,
        )
    if not tensors:
        raise BadWeights(f"{path} holds no tensors")
    _check_sizes(tensors, size_bytes, path)
    return tensors


def _check_archive(path: Path) -> None:
    """Refuses archives that are programs, that could unpack to more than the file, or whose checksums are wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse_foreign_archive(path, entries)
            # torch's own reader leaves the checksums unread, and a flipped bit in a weight would pass.
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BadWeights(f"{path} is damaged or cut short: {error}", fix=_FETCH_AGAIN) from error
    if damaged is not None:
        raise BadWeights(f"{path} is damaged: the checksum of its entry '{damaged}' is wrong", fix=_FETCH_AGAIN)


def _refuse_foreign_archive(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    inside = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in inside):
        raise BadWeights(f"{path} is a TorchScript archive: it contains a program, not only weights", fix=_RESAVE)
    if any(name.rsplit("/", 1)[-1] in ("archive_format", "archive_version") for name in inside):
        raise BadWeights(f"{path} is an exported program (.pt2), not a weights file", fix=_RESAVE)
    if sum(name.endswith("/data.pkl") for name in inside) != 1:
        raise BadWeights(f"{path} is a zip archive, but not one that torch.save wrote")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise BadWeights(f"{path} has compressed entries; torch.save never writes such")


def _read_pickle(path: Path) -> object:
    """Reads what torch.save wrote with the restricted reader; a training script's Namespace of options may be in it."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way, and all of them mean the same to the user
        foreign = re.search(r"(?:GLOBAL|global) `?([\w.]+)", str(error))
        if foreign:
            raise BadWeights(
                f"{path} is refused: it asks for '{foreign[1]}', and weights are only tensors and plain values",
                fix=_RESAVE,
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise BadWeights(f"{path} is damaged or not a PyTorch state dict: {reason}", fix=_FETCH_AGAIN) from error


def _read_safetensors(path: Path) -> StateDict:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as error:  # SafetensorError has no common base, and unknown dtypes raise KeyError
        raise BadWeights(
            f"{path} is damaged or not a safetensors file: {str(error)[:160]}", fix=_FETCH_AGAIN
        ) from error


def _tensors_of(loaded: object, path: Path) -> StateDict:
    if isinstance(loaded, Tensor):
        raise BadWeights(f"{path} holds a single tensor, expected a state dict (names and tensors)")
    if not isinstance(loaded, Mapping):
        raise BadWeights(f"{path} holds a {type(loaded).__name__}, expected a state dict (names and tensors)")
    tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, Tensor)}
    wrapped = [loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
    if len(tensors) <= 1:  # a checkpoint may carry a lone tensor, a random-number state say, beside its state dict
        for inner in wrapped:
            if found := {str(name): value.detach() for name, value in inner.items() if isinstance(value, Tensor)}:
                return found
    if not tensors:
        keys = ", ".join(repr(key) for key in list(loaded)[:6])
        raise BadWeights(f"{path} holds no tensors where a state dict has them; its entries are {keys or 'none'}")
    return tensors


def _check_sizes(tensors: StateDict, size_bytes: int, path: Path) -> None:
    """Refuses tensors that claim more than the file holds (broken sizes, or strides of zero)."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise BadWeights(f"{path}: '{name}' is sparse, quantised or empty of data, expected a plain tensor")
        if tensor.numel() * tensor.element_size() > size_bytes:
            raise BadWeights(f"{path}: '{name}' claims a shape of {list(tensor.shape)}, more than the file holds")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    if sum(storages.values()) > size_bytes:
        raise BadWeights(f"{path}: its tensors claim {sum(storages.values())} bytes, the file has {size_bytes}")


# ---- fitting --------------------------------------------------------------------------------------------------------


def fit_state_dict(
    config: NetworkConfig, state: Mapping[str, Tensor], *, origin: str
) -> tuple[NetworkConfig, StateDict]:
    """Fits foreign weights to an architecture.

    Names of torchvision, timm and the common CIFAR repositories are understood, behind any of `PREFIXES`. The number
    of classes and the shortcut option are the weights' own; everything else must fit exactly.

    Args:
        config: The requested architecture.
        state: Tensors by name, in any floating dtype.
        origin: What messages call the weights.

    Returns:
        The architecture with the weights' classes and shortcuts, and its complete state dict: float32 copies.

    Raises:
        BadWeights: Tensors are missing, left over or of another shape (the fix names the network that the weights
            fit, where there is one), or a tensor is not floating or has NaN, infinity or a negative variance.
    """
    given = _our_names(state, origin)
    config = _with_classes_of(config, given)
    for candidate in _same_but_for_shortcuts(config):
        expected = _shapes(candidate)
        if not _complaints(expected, given):
            break
    else:
        raise _misfit(config, given, origin)
    fitted: StateDict = {}
    for name in expected:
        if name.endswith(_BATCHES_TRACKED):  # counts training steps; absent in old files, and of no use afterwards
            fitted[name] = torch.zeros((), dtype=torch.int64)
        else:
            fitted[name] = _sound_float32(name, given[name], origin)
    return candidate, fitted


def recognise(state: Mapping[str, Tensor]) -> list[str]:
    """Names the networks of the catalog that have exactly these tensors, whatever their number of classes.

    Args:
        state: Tensors by name, as ``read_state_dict`` returns them.
    """
    given = _without_classifier({name: tensor.shape for name, tensor in _our_names(state, "the weights").items()})
    blocks = len({name.split(".")[1] for name in given if name.startswith("layer1.")})
    candidates = dict.fromkeys([*catalog.names(), *([f"cifar-resnet{6 * blocks + 2}"] if 0 < blocks <= 1000 else [])])
    fitting = []
    for name in candidates:
        skeleton = build_skeleton(catalog.lookup(name).config)
        if _without_classifier({key: tensor.shape for key, tensor in skeleton.state_dict().items()}) == given:
            fitting.append(name)
    return fitting


def _our_names(state: Mapping[str, Tensor], origin: str) -> StateDict:
    """Takes off what wrappers put before every name and translates the dialects to torchvision's names."""
    given = {name: tensor for name, tensor in state.items() if name != "n_averaged"}  # AveragedModel's counter
    while prefix := next((p for p in PREFIXES if given and all(name.startswith(p) for name in given)), None):
        given = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    ours: StateDict = {}
    for name, tensor in given.items():
        new, fitted = _translated(name, tensor)
        if new in ours:
            raise BadWeights(f"{origin}: two tensors are both '{new}'; one of them is named '{name}'")
        ours[new] = fitted
    return ours


_TIMM_VGG = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}


def _translated(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    for theirs, ours in _TIMM_VGG.items():
        if name.startswith(theirs):
            # timm writes fully connected layers as convolutions over the 7×7 map: the same numbers in the same order.
            return ours + name.removeprefix(theirs), tensor.flatten(1) if tensor.ndim == 4 else tensor
    if name.startswith("linear."):
        return "fc." + name.removeprefix("linear."), tensor
    return re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name), tensor


def _with_classes_of(config: NetworkConfig, given: Mapping[str, Tensor]) -> NetworkConfig:
    classifier = given.get(f"{_classifier(config)}.weight")
    if classifier is not None and classifier.ndim == 2 and classifier.shape[0] > 0:
        return with_classes(config, classifier.shape[0])
    return config


def _same_but_for_shortcuts(config: NetworkConfig) -> Iterator[NetworkConfig]:
    """Yields the requested architecture, then with the other shortcut options; a plain net stays plain."""
    yield config
    if isinstance(config, ResNetConfig) and config.shortcut != "none":
        for option in SHORTCUT_OPTIONS:
            if option != config.shortcut:
                yield replace(config, shortcut=option)


def _shapes(config: NetworkConfig) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in build_skeleton(config).state_dict().items()}


def _classifier(config: NetworkConfig) -> str:
    return "fc" if isinstance(config, ResNetConfig) else "classifier.6"


def _without_classifier(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    dropped = ("fc.", "classifier.6.")
    return {k: v for k, v in shapes.items() if not k.startswith(dropped) and not k.endswith(_BATCHES_TRACKED)}


def _complaints(expected: Mapping[str, torch.Size], given: Mapping[str, Tensor]) -> list[str]:
    """Says what keeps tensors from fitting, each kind of fault with its first few names; empty where they fit."""
    missing = [name for name in expected if name not in given and not name.endswith(_BATCHES_TRACKED)]
    unexpected = [name for name in given if name not in expected]
    misshaped = [
        f"{name} is {list(given[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in given and not name.endswith(_BATCHES_TRACKED) and given[name].shape != shape
    ]
    return [
        f"{len(names)} {what} ({', '.join(names[:_NAMED_IN_MESSAGE])}{', …' if len(names) > _NAMED_IN_MESSAGE else ''})"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (misshaped, "of another shape"))
        if names
    ]


def _misfit(config: NetworkConfig, given: Mapping[str, Tensor], origin: str) -> BadWeights:
    fitting = recognise(given)
    if fitting:
        fix = f"these look like {fitting[0]}: --model {fitting[0]}"
    elif "features.1.running_mean" in given:
        fix = "these look like a VGG with batch normalisation, which the catalog does not have"
    else:
        fix = "these tensors fit no network of the catalog (resnet-onnx models lists them)"
    return BadWeights(
        f"{origin} does not fit {_describe(config)}: tensors {'; '.join(_complaints(_shapes(config), given))}", fix=fix
    )


def _describe(config: NetworkConfig) -> str:
    for name in catalog.names():
        entry = catalog.lookup(name)
        if with_classes(config, entry.config.num_classes) == entry.config:
            return name
    if isinstance(config, VGGConfig):
        return f"vgg{config.depth}"
    kind = "plain net" if config.shortcut == "none" else f"ResNet with shortcut option {config.shortcut}"
    return f"a {kind}, {config.depth} layers"


def _sound_float32(name: str, tensor: Tensor, origin: str) -> Tensor:
    if not tensor.is_floating_point():
        raise BadWeights(f"{origin}: '{name}' is {str(tensor.dtype).removeprefix('torch.')}, expected a floating dtype")
    if not torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all():
        raise BadWeights(
            f"{origin}: '{name}' has NaN or infinity in it", fix="use a checkpoint from before training diverged"
        )
    fitted = tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if not torch.isfinite(fitted).all():
        raise BadWeights(f"{origin}: '{name}' has values too large for float32")
    if name.endswith(".running_var") and (fitted < 0).any():
        raise BadWeights(f"{origin}: '{name}' has a negative variance in it")
    return fitted


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
        state[f"{_classifier(config)}.bias"] = -torch.cat(logits).mean(dim=0)
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
    _, state = fit_state_dict(entry.config, read_state_dict(cached), origin=pretrained.enum_name)
    return state


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
    state = _read_safetensors(weights)
    network = build_empty(config)
    wanted = network.state_dict()
    if _complaints({name: tensor.shape for name, tensor in wanted.items()}, state):
        raise _misfit(config, state, str(weights))
    for name, tensor in wanted.items():
        if name not in state or state[name].dtype != tensor.dtype:
            found = str(state[name].dtype) if name in state else "missing"
            raise BadWeights(f"{weights}: '{name}' is {found}, expected {tensor.dtype}")
    network.load_state_dict(state, strict=True)
    return network.eval()
