"""Checkpoints: a folder of safetensors and JSON, never a pickle, in which every byte is covered by a hash.

=========================  ==========================================================================
file                       content
=========================  ==========================================================================
``checkpoint.json``        network, recipe, progress, metrics; SHA-256 and size of the files below, and
                           the SHA-256 of its own content
``model.safetensors``      the network's parameters and buffers
``optimizer.safetensors``  the optimizer's tensors; their places are in ``checkpoint.json``
``rng.safetensors``        states of the random number generators, one uint8 vector each
=========================  ==========================================================================

The last two are absent where a checkpoint is only to be used, not to be trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_onnx.models.configs import NetworkConfig, config_from_json, config_to_json
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes import files
from runtimes.errors import BadWeights, UserError

if TYPE_CHECKING:
    import torch

    from resnet_onnx.models.network import Network

RECORD = "checkpoint.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
RNG = "rng.safetensors"
BEST, LAST = "best", "last"

FORMAT = "resnet-onnx checkpoint"
VERSION = 1
_OTHER_CHECKPOINT = "use another checkpoint of the run ('best' or 'last'), or train again"
LARGEST_RECORD_BYTES = 64 * 2**20
"""No record that a training writes is larger, so a larger file is not parsed."""
_LARGEST_PART_BYTES = 2**36

Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        name: The network's catalog name.
        labels: Class names in the order of the outputs, or None.
        recipe: The resolved recipe, as ``Recipe.to_json`` returns it.
        epoch: Epochs trained.
        metrics: Figures of this epoch.
        progress: What a resumed training needs beside tensors; plain JSON.
        optimizer: Structure of the optimizer's state, or None.
        digests: SHA-256 by file name.
        weights_license: License of the weights that the training started from, where their source states one.
    """

    folder: Path
    name: str
    config: NetworkConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    recipe: Mapping[str, Any]
    epoch: int
    metrics: Mapping[str, Any]
    progress: Mapping[str, Any]
    optimizer: Any
    digests: Mapping[str, str]
    weights_license: str | None = None

    @property
    def resumable(self) -> bool:
        """Whether training can go on from here."""
        return OPTIMIZER in self.digests and RNG in self.digests

    def network(self) -> Network:
        """Returns the trained network; its weights stay in this folder."""
        from resnet_onnx.models.network import Network

        return Network(
            name=self.name,
            config=self.config,
            preprocessing=self.preprocessing,
            labels=self.labels,
            weights=self.folder / MODEL,
            weights_sha256=self.digests[MODEL],
            weights_source=f"checkpoint {files.printable(str(self.folder))}, epoch {self.epoch}",
            trained=True,
            weights_license=self.weights_license,
        )

    def module_state(self) -> Tensors:
        """Returns the network's parameters and buffers by name.

        Raises:
            BadWeights: The file changed since it was verified.
        """
        return self._tensors(MODEL)

    def optimizer_state(self) -> dict[str, Any]:
        """Returns what ``torch.optim.Optimizer.load_state_dict`` takes.

        Raises:
            BadWeights: There is none here, or the file changed since it was verified.
        """
        state = _restore(self.optimizer, self._tensors(OPTIMIZER))
        if not isinstance(state, dict):
            raise BadWeights(f"the checkpoint {self.folder} holds no optimizer state that can be read")
        return state

    def rng_state(self) -> Tensors:
        """Returns the states of the random number generators, uint8 vectors by generator.

        Raises:
            BadWeights: There is none here, or the file changed since it was verified.
        """
        return self._tensors(RNG)

    def _tensors(self, name: str) -> Tensors:
        from safetensors import SafetensorError
        from safetensors.torch import load

        if name not in self.digests:
            raise BadWeights(
                f"the checkpoint {self.folder} has no {name}: it is for use, not for training on",
                fix=f"resume from the folder '{LAST}' of the same run",
            )
        data = _read(self.folder / name, _LARGEST_PART_BYTES)
        if hashlib.sha256(data).hexdigest() != self.digests[name]:
            raise BadWeights(f"{self.folder / name} changed while it was being read", fix="try again")
        try:
            return load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise BadWeights(f"{self.folder / name} is not a safetensors file ({error})") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointContent:
    """What a checkpoint is written from: the fields of a ``Checkpoint``, of finite numbers, and the tensors.

    Attributes:
        module_state: The network's ``state_dict``.
        optimizer_state: The optimizer's ``state_dict``, where training is to go on from here.
        rng_state: States of the random number generators, where training is to go on from here.
    """

    name: str
    config: NetworkConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    module_state: Mapping[str, torch.Tensor]
    recipe: Mapping[str, Any]
    epoch: int
    metrics: Mapping[str, Any]
    progress: Mapping[str, Any] = field(default_factory=dict)
    optimizer_state: Mapping[str, Any] | None = None
    rng_state: Mapping[str, torch.Tensor] | None = None
    weights_license: str | None = None


def write_checkpoint(folder: Path, content: CheckpointContent) -> None:
    """Writes a checkpoint in one step; a kill at any moment leaves the old one or the new one.

    Raises:
        FileProblem: The folder can't be written; the old checkpoint is intact.
    """
    from safetensors.torch import save

    from resnet_onnx.version import __version__

    structure, optimizer_tensors = None, Tensors()
    parts: dict[str, Mapping[str, torch.Tensor]] = {MODEL: content.module_state}
    if content.optimizer_state is not None:
        structure = _take_apart(content.optimizer_state, "optimizer", optimizer_tensors)
        parts[OPTIMIZER] = optimizer_tensors
    if content.rng_state is not None:
        parts[RNG] = content.rng_state
    with files.atomic_folder(folder) as draft:
        listed = {}
        for file_name, tensors in parts.items():
            data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            (draft / file_name).write_bytes(data)
            listed[file_name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        values = {
            "network": {
                "name": content.name,
                "config": config_to_json(content.config),
                "preprocessing": content.preprocessing.to_json(),
                "labels": content.labels,
                "weights_license": content.weights_license,
            },
            "recipe": dict(content.recipe),
            "epoch": content.epoch,
            "metrics": dict(content.metrics),
            "progress": dict(content.progress),
            "optimizer": structure,
            "files": listed,
        }
        values = json.loads(json.dumps(values, allow_nan=False))  # what a reader will see, keys and all
        head = {"format": FORMAT, "version": VERSION, "tool": __version__}
        record = {**head, "sha256": _digest(values), "content": values}
        text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        (draft / RECORD).write_bytes(text.encode())


def find_checkpoint(path: Path) -> Path:
    """Returns the checkpoint folder that `path` means: itself, or its ``best`` (else ``last``) from training.

    Raises:
        BadWeights: There is not a checkpoint there.
    """
    if not path.exists():
        raise BadWeights(f"there is not a checkpoint {path}: no such folder", fix="check the path")
    if not path.is_dir():
        raise BadWeights(f"{path} is a file, expected a checkpoint folder with {RECORD}")
    for folder in (path, path / BEST, path / LAST):
        if folder is not path:
            files.settle_folder(folder)
        if (folder / RECORD).is_file():
            return folder
    raise BadWeights(
        f"{path} is not a checkpoint: expected {RECORD} in it, or in its folder '{BEST}' or '{LAST}'",
        fix="name the folder that was given to train --out",
    )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads and verifies a checkpoint: every file is there and has the size and SHA-256 that were written.

    Raises:
        BadWeights: Something is missing, damaged or foreign; the message names the file.
    """
    content = _read_record(folder)
    try:
        return _verified(folder, content)
    except BadWeights:
        # A training that runs at this moment may have put the next checkpoint into place between two reads.
        again = _read_record(folder)
        if again == content:
            raise
        return _verified(folder, again)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        if path.stat().st_size > LARGEST_RECORD_BYTES:
            raise BadWeights(f"{path} is too large to be a checkpoint's record")
    except OSError as error:
        raise BadWeights(f"{folder} is not a checkpoint: can't read {RECORD} ({error.strerror})") from error
    damaged, fix = f"{path} is damaged", _OTHER_CHECKPOINT
    try:
        record = json.loads(_read(path, LARGEST_RECORD_BYTES).decode())
    except (ValueError, RecursionError) as error:
        raise BadWeights(f"{damaged}: {error}", fix=fix) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise BadWeights(f"{path} is not the record of a checkpoint made here (expected format '{FORMAT}')", fix=fix)
    if record.get("version") != VERSION:
        raise BadWeights(
            f"{path} has format version {record.get('version')!r}, this program reads version {VERSION}",
            fix="use the version of resnet-onnx that wrote it",
        )
    content = record.get("content")
    if not isinstance(content, dict) or _digest(content) != record.get("sha256"):
        raise BadWeights(f"{damaged}: its content does not have the SHA-256 it was written with", fix=fix)
    return content


def _verified(folder: Path, content: dict[str, Any]) -> Checkpoint:
    try:
        listed = {str(name): (str(row["sha256"]), int(row["size_bytes"])) for name, row in content["files"].items()}
        network = content["network"]
        labels = network["labels"]
        checkpoint = Checkpoint(
            folder=folder,
            name=str(network["name"]),
            config=config_from_json(network["config"]),
            preprocessing=Preprocessing.from_json(network["preprocessing"]),
            labels=None if labels is None else tuple(str(label) for label in labels),
            recipe=dict(content["recipe"]),
            epoch=int(content["epoch"]),
            metrics=dict(content["metrics"]),
            progress=dict(content["progress"]),
            optimizer=content["optimizer"],
            digests={name: digest for name, (digest, _) in listed.items()},
            weights_license=None if (stated := network.get("weights_license")) is None else str(stated),
        )
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise BadWeights(f"{folder / RECORD} is incomplete: {error}") from error
    if MODEL not in listed or set(listed) - {MODEL, OPTIMIZER, RNG}:
        raise BadWeights(f"{folder / RECORD} lists {', '.join(sorted(listed)) or 'no files'}, expected {MODEL}")
    for name, (digest, size) in listed.items():
        _check_file(folder / name, digest, size)
    return checkpoint


def _check_file(path: Path, digest: str, size: int) -> None:
    try:
        found = path.stat().st_size
        damage = f"it has {found} bytes, {size} were written" if found != size else ""
        if not damage and files.sha256_file(path) != digest:
            damage = "its SHA-256 is not the one it was written with"
    except OSError as error:
        raise BadWeights(f"can't read {path}: {error.strerror or error}", fix=_OTHER_CHECKPOINT) from error
    if damage:
        raise BadWeights(f"{path} is damaged: {damage}", fix=_OTHER_CHECKPOINT)


def _read(path: Path, most: int) -> bytes:
    try:
        return files.read_bounded(path, most)
    except OSError as error:
        raise BadWeights(f"can't read {path}: {error.strerror or error}") from error


def _digest(content: Mapping[str, Any]) -> str:
    """Hashes values, not text: white space and the order of keys do not count."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _take_apart(value: Any, path: str, tensors: Tensors) -> Any:
    """Returns JSON for nested dictionaries, lists and scalars; tensors go to `tensors` under their path."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        # Pairs, because the keys of an optimizer's state are numbers, which JSON's objects do not have.
        return {"pairs": [[key, _take_apart(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_take_apart(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}, which a checkpoint can't hold")


def _restore(value: Any, tensors: Tensors) -> Any:
    try:
        if isinstance(value, list):
            return [_restore(item, tensors) for item in value]
        if isinstance(value, dict):
            if "tensor" in value:
                return tensors[value["tensor"]]
            if "tuple" in value:
                return tuple(_restore(item, tensors) for item in value["tuple"])
            return {key: _restore(item, tensors) for key, item in value["pairs"]}
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeights(f"the optimizer's state in the checkpoint is incomplete: {error}") from error
    return value
