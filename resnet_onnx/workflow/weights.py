"""From a name, a weights file or a checkpoint to a network whose weights lie in the cache by content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resnet_onnx.models import catalog
from resnet_onnx.models.configs import LibraryConfig, NetworkConfig, check_image_size, config_to_json
from resnet_onnx.models.network import Network
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.workflow.request import Request, entry_of
from runtimes import files
from runtimes.environment import package_version
from runtimes.errors import UsageError

RANDOM_PICTURES = 8
"""Pictures that set the batch-norm statistics of random weights: enough that deep activations stay sane, few enough
that they cost less than the export."""
_IMAGE_SIDES = (8, 4096)


def read_network(path: Path) -> Network:
    """Returns the network of a checkpoint folder."""
    from resnet_onnx.training.checkpoint import find_checkpoint, read_checkpoint

    return read_checkpoint(find_checkpoint(path)).network()


def overridden_preprocessing(base: Preprocessing, request: Request) -> Preprocessing:
    """Returns a preprocessing with what the request overrides."""
    changes: dict[str, Any] = {}
    if request.image_size is not None and request.image_size != base.image_size:
        low, high = _IMAGE_SIDES
        if not low <= request.image_size <= high:
            raise UsageError(f"image size {request.image_size} is out of range: {low} to {high} pixels")
        changes["image_size"] = request.image_size
        changes["resize"] = max(request.image_size, round(base.resize * request.image_size / base.image_size))
    if request.resize is not None:
        side = changes.get("image_size", base.image_size)
        if request.resize < side:
            raise UsageError(
                f"--resize {request.resize} leaves less than the {side}×{side} that the model takes",
                fix=f"--resize {side} or more",
            )
        changes["resize"] = request.resize
    if request.mean is not None:
        changes["mean"] = request.mean
    if request.std is not None:
        changes["std"] = request.std
    return replace(base, **changes)


def overridden_labels(request: Request, classes: int | None, default: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Returns the labels that the request names, checked against the number of outputs, or the default ones."""
    if request.labels is None:
        return default
    from resnet_onnx.data.labels import read_labels

    return read_labels(request.labels).for_outputs(classes, request.labels).names


def catalog_labels(entry: catalog.CatalogEntry, classes: int) -> tuple[str, ...] | None:
    """Returns the labels of an entry's data set, or None where the network has another number of classes."""
    from resnet_onnx.data import labels

    if entry.dataset is None:
        known = entry.labels
    else:
        known = labels.imagenet_labels() if entry.dataset == "imagenet" else labels.cifar10_labels()
    return known if known is not None and len(known) == classes else None


def overridden(network: Network, request: Request) -> Network:
    """Returns a network with the preprocessing and labels that the request overrides."""
    return replace(
        network,
        preprocessing=overridden_preprocessing(network.preprocessing, request),
        labels=overridden_labels(request, network.config.num_classes, network.labels),
    )


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where stored weights come from; the attributes are those of ``Network`` without ``weights_``."""

    source: str
    trained: bool
    license: str | None = None
    file_sha256: str | None = None


def as_network(
    request: Request, entry: catalog.CatalogEntry, config: NetworkConfig, stored: tuple[Path, str], origin: Origin
) -> Network:
    """Returns a named network with stored weights."""
    return Network(
        name=entry.name,
        config=config,
        preprocessing=overridden_preprocessing(entry.preprocessing, request),
        labels=overridden_labels(request, config.num_classes, catalog_labels(entry, config.num_classes)),
        weights=stored[0],
        weights_sha256=stored[1],
        weights_source=origin.source,
        trained=origin.trained,
        weights_license=origin.license,
        weights_file_sha256=origin.file_sha256,
    )


def source_of(path: Path, entry: str) -> str:
    """Returns what people read of where weights come from: the file, and its entry where it has several."""
    return files.printable(path.name) + (f" ({files.printable(entry)})" if entry else "")


def fitted_weights(request: Request, path: Path) -> tuple[Network, tuple[str, ...]]:
    """Returns the network that a request names with the weights of a file, and what was left out of it, in words."""
    from resnet_onnx.models.fitting import fit
    from resnet_onnx.models.stated_preprocessing import stated_license, stated_preprocessing
    from resnet_onnx.models.weights import store_state_dict
    from resnet_onnx.models.weights_file import read_weights_file

    entry = entry_of(replace(request, model=None, name=request.name or request.model))
    file = read_weights_file(path)
    fitted = fit(entry.config, file, entry=request.weights_entry)
    stated = None if request.test_size else stated_preprocessing(file, entry)
    notes = fitted.notes
    if stated is not None:
        entry = replace(entry, preprocessing=stated[0], notes=())
        notes += (f"pictures are prepared as {stated[1]} states: shorter side {stated[0].resize}, "
                  f"crop {stated[0].image_size}, {stated[0].interpolation}",)  # fmt: skip
    origin = Origin(
        source=source_of(path, fitted.entry),
        trained=True,
        license=stated_license(file),
        file_sha256=files.sha256_file(path),
    )
    network = as_network(request, entry, fitted.config, store_state_dict(fitted.state), origin)
    return network, (*preparation_notes(entry, network), *notes)


def preparation_notes(entry: catalog.CatalogEntry, network: Network) -> tuple[str, ...]:
    """Returns what an entry says of its choices, where the user made no others."""
    return entry.notes if network.preprocessing == entry.preprocessing else ()


def published_weights(request: Request) -> tuple[Network, tuple[str, ...]]:
    """Returns the network that a request names with the weights that its library published, and notes."""
    from resnet_onnx.models import downloads
    from resnet_onnx.models.weights import store_state_dict

    entry = entry_of(request)
    library = isinstance(entry.config, LibraryConfig)
    if library and request.weights == "imagenet":
        raise UsageError(
            f"--weights imagenet are torchvision's for the catalog's networks, not for {entry.name}",
            fix="--weights pretrained",
        )
    found = (downloads.library_weights if request.weights == "pretrained" else downloads.imagenet_weights)(entry)
    origin = Origin(source=found.source, trained=True, license=found.license, file_sha256=found.file_sha256)
    network = as_network(request, entry, entry.config, store_state_dict(found.state), origin)
    return network, preparation_notes(entry, network)


def random_weights(request: Request) -> tuple[Network, tuple[str, ...]]:
    """Random weights are made once per seed and kept: the same command gives the same numbers. Also returns notes."""
    entry = entry_of(request)
    preprocessing = overridden_preprocessing(entry.preprocessing, request)
    check_image_size(entry.config, entry.name, preprocessing.image_size)
    made_from = {
        "config": config_to_json(entry.config),
        "preprocessing": preprocessing.to_json(),
        "seed": request.seed,
        "pictures": RANDOM_PICTURES,
        "torch": package_version("torch"),
        "recipe": 3,
        **library_versions(entry.config),
    }
    note = files.cache_dir("random") / f"{digest(made_from)}.json"
    stored = _recall(note)
    if stored is None:
        from resnet_onnx.data.samples import sample_pictures
        from resnet_onnx.models.weights import random_state_dict, store_state_dict

        pictures = sample_pictures(RANDOM_PICTURES, preprocessing, seed=0)
        state = random_state_dict(entry.config, preprocessing, seed=request.seed, pictures=pictures)
        stored = store_state_dict(state)
        files.write_sealed(note, json.dumps({"weights_sha256": stored[1], "made_from": made_from}).encode())
    origin = Origin(source=f"random weights (seed {request.seed})", trained=False)
    network = as_network(request, entry, entry.config, stored, origin)
    return network, preparation_notes(entry, network)


def library_versions(config: NetworkConfig) -> dict[str, str | None]:
    """Returns the version of the library that defines a network, by the library's name; nothing for the catalog's."""
    return {config.library: package_version(config.library)} if isinstance(config, LibraryConfig) else {}


def _recall(note: Path) -> tuple[Path, str] | None:
    """Returns the weights that a note names, where it is as it was written and belongs under its name."""
    kept = files.read_sealed(note)
    if kept is None:
        return None
    found = json.loads(kept)
    if digest(found["made_from"]) != note.stem:
        return None
    sha = str(found["weights_sha256"])
    path = files.find_by_content("weights", ".safetensors", sha)
    return (path, sha) if path else None


def digest(value: Any) -> str:
    """Returns a short hash of plain values, for names in the cache."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
