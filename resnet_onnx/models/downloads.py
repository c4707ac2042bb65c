"""Trained weights by the libraries' own downloads: torchvision's server, the Hugging Face hub for timm."""

from __future__ import annotations

import http.client
import re
import socket
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resnet_onnx.models import catalog, libraries
from resnet_onnx.models.configs import ResNetConfig
from resnet_onnx.models.fitting import fit
from resnet_onnx.models.weights_file import StateDict, read_weights_file
from runtimes import files
from runtimes.errors import BadWeights, FileProblem, NetworkUnavailable, UsageError, reason

_SILENCE_SECONDS = 30.0  # of the server, before a download counts as failed


@dataclass(frozen=True, kw_only=True)
class Published:
    """Trained weights that a library published.

    Attributes:
        state: The complete state dict, float32.
        source: For people: whose weights they are.
        license: As the library states it, or None where it does not.
        file_sha256: SHA-256 of the file that was downloaded, lower-case hexadecimal.
    """

    state: StateDict
    source: str
    license: str | None
    file_sha256: str


def imagenet_weights(entry: catalog.CatalogEntry, *, progress: bool = False) -> Published:
    """Downloads torchvision's trained weights for a network of the catalog, or takes them from the cache.

    `progress` says whether torch draws its progress bar on stderr.

    Raises:
        UsageError: torchvision has no weights for exactly this network.
        NetworkUnavailable: The server can't be reached.
        BadWeights: What was downloaded is not what torchvision published.
    """
    from torchvision.models import get_weight

    if entry.pretrained is None:
        raise UsageError(f"there are no ImageNet weights for {entry.name}", fix=_where_weights_are(entry))
    name = entry.pretrained.enum_name
    return _from_torchvision(entry, get_weight(name), f"torchvision {name}", progress=progress)


def library_weights(entry: catalog.CatalogEntry, *, progress: bool = False) -> Published:
    """Downloads a library's trained weights for one of its networks, or takes them from the cache.

    The weights are those of the tag in the entry's name, or the library's default. timm keeps what it downloads in the
    cache of the Hugging Face hub or of torch, which other programs share; `progress` as for ``imagenet_weights``.

    Raises:
        UsageError: The library has none for this network.
        NetworkUnavailable: The server can't be reached.
        BadWeights: What was downloaded is not what the library published.
    """
    named = libraries.parse(entry.name)
    if named is None:
        raise UsageError(
            f"--weights pretrained is for networks of {' and '.join(libraries.LIBRARIES)}, not for {entry.name}",
            fix="--weights imagenet",
        )
    if named.library == "torchvision":
        weights = libraries.torchvision_weights(named)
        if weights is None:
            raise UsageError(f"torchvision has no trained weights for {named.name}", fix="pass a file: --weights PATH")
        return _from_torchvision(entry, weights, f"torchvision {weights}", progress=progress)
    return _from_timm(entry, named)


# ---- torchvision -----------------------------------------------------------------------------------------------------


def _from_torchvision(entry: catalog.CatalogEntry, weights: Any, source: str, *, progress: bool) -> Published:
    url = str(weights.url)
    folder = files.cache_dir("downloads")
    cached = folder / url.rsplit("/", 1)[-1]
    hashed = re.search(r"-([0-9a-f]{8,64})\.", cached.name)
    if hashed is None:
        raise BadWeights(f"torchvision's address {url} names no hash to check the download by")
    # torch checks the hash of a download, but not of a file that is already there.
    if cached.exists() and not files.sha256_file(cached).startswith(hashed[1]):
        cached.unlink()
    with _told_plainly(f"torchvision's weights of {entry.name}", _Place(url=url, file=cached.name, folder=folder)):
        weights.get_state_dict(progress=progress, check_hash=True, model_dir=str(folder), weights_only=True)
    return Published(
        state=dict(fit(entry.config, replace(read_weights_file(cached), origin=source)).state),
        source=source,
        license=libraries.torchvision_license(weights),
        file_sha256=files.sha256_file(cached),
    )


def _where_weights_are(entry: catalog.CatalogEntry) -> str:
    config = entry.config
    if isinstance(config, ResNetConfig) and config.block == "bottleneck" and config.variant == "v1":
        return f"torchvision's are for v1.5: use {entry.name.removesuffix('-v1')}, or pass a file: --weights PATH"
    have = ", ".join(name for name in catalog.names() if catalog.lookup(name).pretrained)
    return f"pass a file: --weights PATH; torchvision has weights for {have}"


# ---- timm ------------------------------------------------------------------------------------------------------------


def _from_timm(entry: catalog.CatalogEntry, named: libraries.LibraryName) -> Published:
    import timm

    cfg = libraries.timm_cfg(named)
    if not cfg.has_weights:
        raise UsageError(f"timm has no trained weights for {named.tagged}", fix="pass a file: --weights PATH")
    tagged = f"{named.name}.{cfg.tag}" if cfg.tag else named.name
    there = _timm_file(cfg)
    _refuse_damaged(there, tagged)
    with _told_plainly(f"timm's weights of {tagged}", _timm_place(cfg)):
        if there is None and cfg.hf_hub_id:
            _ask_hub(cfg)
        timm.models.set_pretrained_check_hash(True)
        module = timm.create_model(tagged, pretrained=True)
    file = _timm_file(cfg)
    if file is None:
        raise BadWeights(f"timm downloaded {tagged} to an unknown place, so that its hash can't be recorded")
    return Published(
        state={name: tensor.detach() for name, tensor in module.state_dict().items()},
        source=f"timm {tagged}",
        license=cfg.license,
        file_sha256=_refuse_damaged(file, tagged),
    )


def _timm_file(cfg: Any) -> Path | None:
    """Returns the file that timm's weights were downloaded to, None where they were not."""
    if not cfg.hf_hub_id:
        file = _timm_place(cfg).folder / _timm_place(cfg).file
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    for name in _hub_files(cfg):
        found = try_to_load_from_cache(cfg.hf_hub_id, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _hub_files(cfg: Any) -> tuple[str, ...]:
    """Returns the names that timm looks for on the hub, in its order."""
    return (cfg.hf_hub_filename,) if cfg.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")


def _ask_hub(cfg: Any) -> None:
    """Asks for a file once: its client tries again for most of a minute before it says that nobody answers."""
    from huggingface_hub import errors, get_hf_file_metadata

    with suppress(errors.EntryNotFoundError):  # an older form of the file may be there
        get_hf_file_metadata(_timm_place(cfg).url)


def _timm_place(cfg: Any) -> _Place:
    if cfg.hf_hub_id:
        from huggingface_hub import constants, hf_hub_url

        folder = Path(constants.HF_HUB_CACHE) / f"models--{cfg.hf_hub_id.replace('/', '--')}"
        file = _hub_files(cfg)[0]
        return _Place(url=hf_hub_url(cfg.hf_hub_id, file), file=file, folder=folder)
    from torch.hub import get_dir

    url, file = cfg.url if isinstance(cfg.url, tuple) else (cfg.url, cfg.url.rsplit("/", 1)[-1])
    return _Place(url=url, file=file, folder=Path(get_dir()) / "checkpoints")


def _refuse_damaged(file: Path | None, what: str) -> str:
    """Returns the SHA-256 of a downloaded file; raises ``BadWeights`` where its source states another.

    The hub names a large file by its SHA-256, torch writes the first digits of it into the file's name.
    """
    if file is None:
        return ""
    found = files.sha256_file(file)
    stated = re.fullmatch(r"([0-9a-f]{64})", file.resolve().name) or re.search(r"-([0-9a-f]{8,64})\.", file.name)
    if stated is not None and not found.startswith(stated[1]):
        raise BadWeights(
            f"{file} is not what was published as timm's weights of {what}: the SHA-256 differs",
            fix=f"delete {file.resolve()}, so that it is downloaded again",
        )
    return found


# ---- failures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a file is downloaded from, and the folder in which it is looked for first."""

    url: str
    file: str
    folder: Path


@contextmanager
def _told_plainly(what: str, place: _Place) -> Iterator[None]:
    """Turns what goes wrong in a library's download into one sentence."""
    from huggingface_hub import errors

    hub: Any = errors  # its client's base of errors is not in its __all__

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_SECONDS)
    try:
        yield
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,  # the hub's offline mode is one
        TimeoutError,
        hub.LocalEntryNotFoundError,
        hub.HTTPError,  # the base of what the hub's client raises
    ) as error:
        raise NetworkUnavailable(
            f"can't download {what}: there is no network, or {place.url} does not answer ({_network_reason(error)}); "
            f"{place.file} was looked for in {place.folder}",
            fix=f"download that file elsewhere and pass it: --weights {place.file}",
        ) from error
    except RuntimeError as error:
        if "invalid hash" not in str(error):
            raise
        raise BadWeights(
            f"what {place.url} sent is not what was published: the SHA-256 differs",
            fix="try again; if it stays so, something between here and the server changes files",
        ) from error
    except OSError as error:
        raise FileProblem(f"can't store the download of {place.url}: {error.strerror or error}") from error
    finally:
        socket.setdefaulttimeout(patience)


def _network_reason(error: BaseException) -> str:
    """Returns what a client says of a failed request: the status where the server answered."""
    for cause in (error, error.__cause__):
        if isinstance(cause, urllib.error.HTTPError):
            cause.close()
            return f"HTTP {cause.code}"
        if (response := getattr(cause, "response", None)) is not None:
            return f"HTTP {response.status_code}"
    told = error.__cause__ if error.__cause__ is not None else getattr(error, "reason", error)
    return reason(told if isinstance(told, BaseException) else str(told))
