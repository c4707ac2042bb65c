"""Distances between an output and its gold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far an output is from gold, over all pictures.

    Attributes:
        relative_rmse: Root mean square of the per-picture relative RMSE.
        worst_picture: The largest per-picture relative RMSE.
        cosine: Smallest cosine similarity of any picture.
        per_picture: Relative RMSE [picture].
        max_abs_per_picture: Largest absolute difference [picture].
    """

    relative_rmse: float
    worst_picture: float
    worst_index: int
    max_abs: float
    cosine: float
    finite: bool
    per_picture: NDArray[np.float64]
    max_abs_per_picture: NDArray[np.float64]


class DistanceSum:
    """Measures outputs against gold batch by batch; what is kept are a few numbers per picture."""

    def __init__(self) -> None:
        self._rms_error: list[NDArray[np.float64]] = []
        self._rms_gold: list[NDArray[np.float64]] = []
        self._largest: list[NDArray[np.float64]] = []
        self._cosines: list[NDArray[np.float64]] = []
        self._sound: list[NDArray[np.bool_]] = []

    def add(self, gold: NDArray[Any], found: NDArray[Any]) -> None:
        """Measures one batch [picture, …], in float64; both have the same shape."""
        if not gold.size:  # nothing was found, as in a picture without an object: equal shapes are all there is
            return
        a = gold.astype(np.float64).reshape(len(gold) if gold.ndim else 1, -1)
        b = found.astype(np.float64).reshape(a.shape)
        sound = np.asarray(np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1))
        with np.errstate(all="ignore"):
            difference = np.where(sound[:, None], a - b, np.inf)
            products = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            plain = np.where(sound, 1.0, -1.0)
            self._rms_error.append(np.sqrt(np.mean(difference**2, axis=1)))
            self._rms_gold.append(np.sqrt(np.mean(a**2, axis=1)))
            self._largest.append(np.abs(difference).max(axis=1))
            self._cosines.append(np.where(sound & (products > 0), np.sum(a * b, axis=1) / products, plain))
        self._sound.append(sound)

    def total(self) -> Distance:
        """Returns the distance over all batches; a NaN or Inf on either side makes the errors infinite, never small."""
        if not self._sound:
            nothing = np.zeros(1)
            return Distance(
                relative_rmse=0.0, worst_picture=0.0, worst_index=0, max_abs=0.0, cosine=1.0, finite=True,
                per_picture=nothing, max_abs_per_picture=nothing,
            )  # fmt: skip
        sound, largest = np.concatenate(self._sound), np.concatenate(self._largest)
        rms_error, rms_gold = np.concatenate(self._rms_error), np.concatenate(self._rms_gold)
        with np.errstate(all="ignore"):
            # A picture whose gold is all zero has no scale of its own: the others' serves, or 1.
            sane = rms_gold[np.isfinite(rms_gold) & (rms_gold > 0)]
            scale = np.where(rms_gold > 0, rms_gold, np.median(sane) if sane.size else 1.0)
            per_picture = np.where(sound, rms_error / scale, np.inf)
        worst = int(np.argmax(per_picture))
        return Distance(
            relative_rmse=float(np.sqrt(np.mean(per_picture**2))),
            worst_picture=float(per_picture[worst]),
            worst_index=worst,
            max_abs=float(largest.max()),
            cosine=float(min(part.min() for part in self._cosines)),
            finite=bool(sound.all()),
            per_picture=per_picture,
            max_abs_per_picture=largest,
        )


def distance(gold: NDArray[Any], found: NDArray[Any]) -> Distance:
    """Measures one batch as ``DistanceSum``."""
    whole = DistanceSum()
    whole.add(gold, found)
    return whole.total()


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Top-1 decisions against gold's.

    Attributes:
        excused: Pictures that differ where gold itself was undecided within twice the observed error.
    """

    pictures: int
    equal: int
    excused: tuple[int, ...]
    unexcused: tuple[int, ...]

    @property
    def agreement(self) -> float:
        """Fraction of equal decisions."""
        return self.equal / self.pictures


class DecisionSum:
    """Compares top-1 decisions with gold's batch by batch; what is kept are two numbers per picture."""

    def __init__(self) -> None:
        self._margins: list[NDArray[np.float64]] = []
        self._flipped: list[NDArray[np.bool_]] = []

    def add(self, gold: NDArray[Any], found: NDArray[Any]) -> None:
        """Compares one batch of scores [picture, class] with the same of gold."""
        best = np.sort(gold.astype(np.float64), axis=1)
        self._margins.append(best[:, -1] - best[:, -2])
        self._flipped.append(gold.argmax(axis=1) != found.argmax(axis=1))

    def total(self, observed: NDArray[np.float64], *, multiple: float) -> Decisions:
        """Judges the flips of all batches, by the largest absolute error observed per picture [picture].

        A flip is excused where gold's margin is below `multiple` observed errors.
        """
        margins, flipped = np.concatenate(self._margins), np.flatnonzero(np.concatenate(self._flipped))
        sound = np.isfinite(observed)
        excused = tuple(int(i) for i in flipped if sound[i] and margins[i] <= multiple * observed[i])
        return Decisions(
            pictures=len(margins),
            equal=len(margins) - len(flipped),
            excused=excused,
            unexcused=tuple(int(i) for i in flipped if i not in excused),
        )
