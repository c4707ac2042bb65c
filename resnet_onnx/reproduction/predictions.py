"""A trained network's predictions on whole sets of pictures, kept beside its checkpoint, so computed once."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.training.checkpoint import read_checkpoint
from resnet_onnx.training.splits import names_sha256
from runtimes import files

if TYPE_CHECKING:
    import torch
    from torch import nn

    from resnet_onnx.data.datasets import PictureSet
    from resnet_onnx.models.preprocessing import Preprocessing
    from resnet_onnx.training.loaders import Loader

PREDICTIONS = "answers.json"
"""Beside the checkpoint's folder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Which pictures of a set a network classifies correctly.

    Attributes:
        correct: bool [pictures], in the order of the set.
        loss: Mean cross-entropy.
    """

    correct: NDArray[np.bool_]
    loss: float

    @property
    def error(self) -> float:
        """Share of wrong predictions, 0 to 1."""
        return float((~self.correct).mean())

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; ``from_json`` is the inverse."""
        packed = base64.b64encode(np.packbits(self.correct).tobytes()).decode()
        return {"pictures": int(self.correct.size), "right": packed, "loss": self.loss}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Predictions:
        """Rebuilds from ``to_json``'s values; raises ``KeyError``, ``TypeError`` or ``ValueError`` where it can't."""
        bits = np.unpackbits(np.frombuffer(base64.b64decode(values["right"], validate=True), np.uint8))
        count = int(values["pictures"])
        if not 0 < count <= bits.size:
            raise ValueError(f"{bits.size} bits for {count} pictures")
        return cls(correct=bits[:count].astype(np.bool_), loss=float(values["loss"]))


class PredictionCache:
    """Predictions of the network in a checkpoint on sets of pictures.

    What was computed before is read back where it is of the same weights and pictures; a damaged file is written anew.

    Args:
        checkpoint: Its folder.
        path: The file.
    """

    def __init__(self, checkpoint: Path, path: Path) -> None:
        self._network = read_checkpoint(checkpoint).network()
        self._path = path
        self._known = self._read()

    def get(self, fingerprint: str) -> Predictions | None:
        """Returns the predictions on a set of pictures, or None where they were never computed."""
        return self._known.get(fingerprint)

    def module(self, device: torch.device) -> nn.Module:
        """Returns the network, to compute predictions with."""
        return self._network.load().to(device)

    def put(self, fingerprint: str, predictions: Predictions) -> None:
        """Keeps predictions; raises ``FileProblem``."""
        self._known[fingerprint] = predictions
        document = {
            "weights_sha256": self._network.weights_sha256,
            "answers": {name: found.to_json() for name, found in self._known.items()},
        }
        files.write_json(self._path, document)

    def _read(self) -> dict[str, Predictions]:
        try:
            document = json.loads(self._path.read_bytes())
            if document["weights_sha256"] != self._network.weights_sha256:
                return {}
            return {name: Predictions.from_json(found) for name, found in document["answers"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


@final
class Predictor:
    """Computes predictions on two sets of pictures, which are loaded when first used and kept for the next network.

    `device` and `workers` are as in ``TrainingPlan``.
    """

    def __init__(
        self,
        sets: Mapping[str, PictureSet],
        preprocessing: Preprocessing,
        *,
        device: str | None,
        workers: int | None,
    ) -> None:
        from resnet_onnx.training.distributed import SINGLE_PROCESS

        self._sets, self._preprocessing, self._workers = sets, preprocessing, workers
        self._device = SINGLE_PROCESS.device(device)
        self._loaders: dict[str, Loader] = {}

    def predict(self, module: nn.Module, split: str) -> Predictions:
        """Returns a network's predictions, in fp32, on unchanged pictures, batch norm in evaluation mode."""
        from resnet_onnx.training.augmentation import Normaliser
        from resnet_onnx.training.validation import predictions

        loader = self._loader(split)
        correct, loss = predictions(module, loader, Normaliser(self._preprocessing, self._device))
        return Predictions(correct=correct.cpu().numpy(), loss=float(loss) / len(loader))

    def of_checkpoint(self, checkpoint: Path) -> tuple[Predictions, Predictions]:
        """Returns a checkpoint's predictions on the training and on the test pictures, and keeps them beside it."""
        cache = PredictionCache(checkpoint, checkpoint.parent / PREDICTIONS)
        module: nn.Module | None = None
        found = []
        for split, pictures in self._sets.items():
            fingerprint = names_sha256(pictures)
            known = cache.get(fingerprint)
            if known is None:
                module = module or cache.module(self._device)
                known = self.predict(module, split)
                cache.put(fingerprint, known)
            found.append(known)
        self._close("train")  # the next training has its own copy of them
        return found[0], found[1]

    def close(self) -> None:
        """Releases all pictures."""
        for split in self._sets:
            self._close(split)

    def _close(self, split: str) -> None:
        if split in self._loaders:
            self._loaders.pop(split).close()

    def _loader(self, split: str) -> Loader:
        from resnet_onnx.training.loaders import loading_workers, open_loader

        if split not in self._loaders:
            pictures, preprocessing = self._sets[split], self._preprocessing
            workers = loading_workers(self._workers, len(pictures))
            self._loaders[split] = open_loader(
                pictures, preprocessing, self._device, recipe=None, seed=0, workers=workers
            )
        return self._loaders[split]
