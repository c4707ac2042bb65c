"""From a name, a weights file or a checkpoint to a network whose weights lie in the cache by content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnet_onnx.models import catalog
from resnet_onnx.models.configs import NetworkConfig, check_image_size, config_to_json
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

    known = labels.imagenet_labels() if entry.dataset == "imagenet" else labels.cifar10_labels()
    return known if len(known) == classes else None


def overridden(network: Network, request: Request) -> Network:
    """Returns a network with the preprocessing and labels that the request overrides."""
    return replace(
        network,
        preprocessing=overridden_preprocessing(network.preprocessing, request),
        labels=overridden_labels(request, network.config.num_classes, network.labels),
    )


def as_network(
    request: Request,
    entry: catalog.CatalogEntry,
    config: NetworkConfig,
    stored: tuple[Path, str],
    source: str,
    trained: bool,
) -> Network:
    """Returns an entry of the catalog with stored weights as a network."""
    return Network(
        name=entry.name,
        config=config,
        preprocessing=overridden_preprocessing(entry.preprocessing, request),
        labels=overridden_labels(request, config.num_classes, catalog_labels(entry, config.num_classes)),
        weights=stored[0],
        weights_sha256=stored[1],
        weights_source=source,
        trained=trained,
    )


def source_of(path: Path, entry: str) -> str:
    """Returns what people read of where weights come from: the file, and its entry where it has several."""
    return files.printable(path.name) + (f" ({files.printable(entry)})" if entry else "")


def fitted_weights(request: Request, path: Path) -> tuple[Network, tuple[str, ...]]:
    """Returns the network that a request names with the weights of a file, and what was left out of it, in words."""
    from resnet_onnx.models.fitting import fit
    from resnet_onnx.models.stated_preprocessing import stated_preprocessing
    from resnet_onnx.models.weights import store_state_dict
    from resnet_onnx.models.weights_file import read_weights_file

    entry = entry_of(replace(request, model=None, name=request.name or request.model))
    file = read_weights_file(path)
    fitted = fit(entry.config, file, entry=request.weights_entry)
    stated = stated_preprocessing(file, entry)
    notes = fitted.notes
    if stated is not None:
        entry = replace(entry, preprocessing=stated[0])
        notes += (f"pictures are prepared as {stated[1]} states: shorter side {stated[0].resize}, "
                  f"crop {stated[0].image_size}, {stated[0].interpolation}",)  # fmt: skip
    source = source_of(path, fitted.entry)
    network = as_network(request, entry, fitted.config, store_state_dict(fitted.state), source, True)
    return network, notes


def imagenet_weights(request: Request) -> Network:
    """Returns the network that a request names with the published ImageNet weights."""
    from resnet_onnx.models.weights import imagenet_state_dict, store_state_dict

    entry = entry_of(request)
    state = imagenet_state_dict(entry)
    enum = entry.pretrained.enum_name if entry.pretrained else ""
    return as_network(request, entry, entry.config, store_state_dict(state), f"torchvision {enum}", True)


def random_weights(request: Request) -> Network:
    """Random weights are made once per seed and kept: the same command gives the same numbers."""
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
    return as_network(request, entry, entry.config, stored, f"random weights (seed {request.seed})", False)


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
