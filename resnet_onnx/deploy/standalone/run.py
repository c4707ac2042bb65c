"""Classifies pictures with the model in this folder, set and fed as it was when it was measured and proven.

    python run.py photo.jpg …

It needs what requirements.txt names and nothing else. A service makes one ``Classifier`` and keeps it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from engine import Engine
from picture_tensor import tensor

HERE = Path(__file__).resolve().parent


class Classifier:
    """The opened model: from pictures (a path, a file's bytes, a Pillow image, uint8 [height, width, 3]) to labels.

    Any number of threads may call it; as many run at a time as there are streams, and ``batch`` uses them all.

    Args:
        folder: The bundle.
        threads: CPU threads in place of those that were measured.
    """

    def __init__(self, folder: Path = HERE, *, threads: int | None = None) -> None:
        about = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        self.labels, self.preprocessing, self.settings = about["labels"], about["preprocessing"], about["settings"]
        if threads is not None:
            self.settings["threads"] = threads
        self._fixed = isinstance(about["model"]["input"]["shape"][0], int)
        self._engine = Engine(str(folder / about["model"]["file"]), self.settings, about["model"])
        self._streams = ThreadPoolExecutor(self.settings["streams"])

    def __call__(self, picture: Any, top: int = 5) -> list[tuple[str, float]]:
        """Returns the likeliest labels of one picture with their probabilities, best first."""
        return self.batch([picture], top)[0]

    def batch(self, pictures: Sequence[Any], top: int = 5) -> list[list[tuple[str, float]]]:
        """Returns what a call returns, for each of several pictures."""
        return [self._ranked(row, top) for row in self.scores(self.tensor(pictures))] if pictures else []

    def tensor(self, pictures: Sequence[Any]) -> Any:
        """Returns the model's input: pictures decoded, resized, cropped, normalised."""
        return tensor(pictures, self.preprocessing, self.preprocessing["dtype"])

    def scores(self, array: Any) -> Any:
        """Returns the model's scores, [picture, class], of its input; it runs in batches of the measured size."""
        size = self.settings["batch"]
        pieces = [array[start : start + size] for start in range(0, len(array), size)]
        run = map if len(pieces) == 1 or self.settings["streams"] == 1 else self._streams.map
        return np.concatenate(list(run(self._run, pieces)))[: len(array)]

    def _run(self, piece: Any) -> Any:
        count, size = len(piece), self.settings["batch"]
        if self._fixed and count < size:  # filled up with the same pictures again
            piece = np.resize(piece, (size, *piece.shape[1:]))
        return self._engine.run(piece)[:count].reshape(count, -1)

    def _ranked(self, row: Any, top: int) -> list[tuple[str, float]]:
        row = row.astype(np.float64)
        if row.min() < 0 or row.max() > 1 or abs(row.sum() - 1) > 1e-3:  # scores, not probabilities
            row = np.exp(row - row.max())
            row /= row.sum()
        return [(self.labels[index], float(row[index])) for index in np.argsort(-row, kind="stable")[:top]]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python run.py PICTURE …")
    for name, found in zip(sys.argv[1:], Classifier().batch(sys.argv[1:]), strict=True):
        print(f"{name}: " + ", ".join(f"{label} {probability:.1%}" for label, probability in found))
