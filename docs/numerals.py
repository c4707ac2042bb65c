"""Writes two small sets of pictures, of the numerals that scikit-learn ships: `mine` (eight, nine) and `others`.

python docs/numerals.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

_ENOUGH = 20
"""Pictures of each class of `mine` to learn from."""


def write(root: Path) -> None:
    """Writes ``mine`` and ``others``, each with ``train/CLASS`` and ``test/CLASS``, below a folder."""
    digits = load_digits()
    for place, (picture, numeral) in enumerate(zip(digits.images, digits.target, strict=True)):
        data, name = ("mine", ("eight", "nine")[numeral - 8]) if numeral >= 8 else ("others", str(numeral))
        folder = root / data / ("train" if place % 5 else "test") / name
        folder.mkdir(parents=True, exist_ok=True)
        if data == "others" or folder.parent.name == "test" or len(list(folder.iterdir())) < _ENOUGH:
            Image.fromarray((picture * 15.9).astype("uint8")).save(folder / f"{place:04d}.png")


if __name__ == "__main__":
    write(Path())
