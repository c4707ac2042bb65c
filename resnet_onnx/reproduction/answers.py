"""Which pictures a trained network gets right, kept beside its checkpoint so that it is computed once."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.training.checkpoint import read_checkpoint
from runtimes import files

if TYPE_CHECKING:
    import torch
    from torch import nn

    from resnet_onnx.training.augmentation import Normaliser
    from resnet_onnx.training.feeds import Feed


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a network answers on a set of pictures.

    Attributes:
        right: bool [pictures], in the order of the set.
        loss: Mean cross-entropy.
    """

    right: NDArray[np.bool_]
    loss: float

    @property
    def error(self) -> float:
        """Share of wrong answers, 0 to 1."""
        return float((~self.right).mean())

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; ``from_json`` is the inverse."""
        packed = base64.b64encode(np.packbits(self.right).tobytes()).decode()
        return {"pictures": int(self.right.size), "right": packed, "loss": self.loss}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Answers:
        """Rebuilds from ``to_json``'s values; raises ``KeyError``, ``TypeError`` or ``ValueError`` where it can't."""
        bits = np.unpackbits(np.frombuffer(base64.b64decode(values["right"], validate=True), np.uint8))
        count = int(values["pictures"])
        if not 0 < count <= bits.size:
            raise ValueError(f"{bits.size} bits for {count} pictures")
        return cls(right=bits[:count].astype(np.bool_), loss=float(values["loss"]))


def ask(module: nn.Module, feed: Feed, normaliser: Normaliser) -> Answers:
    """Returns a network's answers on a feed, in fp32 and without augmentation, batch norm in its final state."""
    from resnet_onnx.training.validation import predictions

    right, loss = predictions(module, feed, normaliser)
    return Answers(right=right.cpu().numpy(), loss=float(loss) / len(feed))


class AnswerBook:
    """Answers of the network in a checkpoint on named sets of pictures.

    What was answered before is read back where it is of the same weights and pictures; a book that is damaged is
    written anew.

    Args:
        checkpoint: The checkpoint's folder.
        path: Where the answers are kept.
    """

    def __init__(self, checkpoint: Path, path: Path) -> None:
        self._network = read_checkpoint(checkpoint).network()
        self._path = path
        self._known = self._read()

    def known(self, fingerprint: str) -> Answers | None:
        """Returns the answers on a set of pictures, or None where it was never asked about them."""
        return self._known.get(fingerprint)

    def module(self, device: torch.device) -> nn.Module:
        """Returns the network, to be asked."""
        return self._network.load().to(device)

    def write(self, fingerprint: str, answers: Answers) -> None:
        """Keeps answers; raises ``FileProblem``."""
        self._known[fingerprint] = answers
        document = {
            "weights_sha256": self._network.weights_sha256,
            "answers": {name: found.to_json() for name, found in self._known.items()},
        }
        files.write_json(self._path, document)

    def _read(self) -> dict[str, Answers]:
        try:
            document = json.loads(self._path.read_bytes())
            if document["weights_sha256"] != self._network.weights_sha256:
                return {}
            return {name: Answers.from_json(found) for name, found in document["answers"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
