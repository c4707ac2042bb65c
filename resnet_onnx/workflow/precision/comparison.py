"""A candidate beside float32: equal decisions, the noise of the outputs, the drop of top-1 with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.parity.proportions import paired_interval


@dataclass(kw_only=True)
class Comparison:
    """Outputs of a candidate beside those of the float32 model, on the same pictures.

    Attributes:
        images: Pictures compared.
        equal: Pictures with the same top-1 decision.
        energies: For each output, the energy of float32's and that of the differences; the latter is infinite where an
            output is not finite or has another shape.
        only_fp32: Labelled pictures that float32 alone gets right.
        only_candidate: Labelled pictures that the candidate alone gets right.
        both: Labelled pictures that both get right.
        labelled: Labelled pictures.
    """

    images: int = 0
    equal: int = 0
    energies: list[tuple[float, float]] = field(default_factory=list)
    only_fp32: int = 0
    only_candidate: int = 0
    both: int = 0
    labelled: int = 0

    @property
    def agreement(self) -> float:
        """Share of equal decisions."""
        return self.equal / max(1, self.images)

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio of the outputs, decibels; that of the worst one where there are several."""
        return min((_decibels(signal, noise) for signal, noise in self.energies), default=math.inf)

    @property
    def finite(self) -> bool:
        """Whether all outputs were finite."""
        return all(math.isfinite(noise) for _, noise in self.energies)

    @property
    def drop(self) -> float:
        """Loss of top-1, in points; negative where the candidate is better."""
        return 100 * (self.only_fp32 - self.only_candidate) / max(1, self.labelled)

    def add(
        self, expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]], labels: NDArray[np.int64] | None
    ) -> None:
        """Adds the outputs of a batch, [picture, …] each; the first one decides.

        Outputs of whole numbers beside it (places, classes) have no signal that noise could be compared with, and don't
        count.
        """
        pairs = [(_rows(a), _rows(b)) for a, b in zip(expected, found, strict=True)]
        pairs = [(a, b) for number, (a, b) in enumerate(pairs) if not number or not np.issubdtype(a.dtype, np.integer)]
        added = [_energies(a, b) for a, b in pairs]
        before = self.energies or [(0.0, 0.0)] * len(added)
        self.energies = [(s + ds, n + dn) for (s, n), (ds, dn) in zip(before, added, strict=True)]
        a, b = pairs[0]
        self.images += len(a)
        if a.shape != b.shape or not a.size:
            return
        whole = np.isfinite(b.astype(np.float64)).all(axis=1)
        first, second = a.argmax(axis=1), np.where(whole, b.argmax(axis=1), -1)
        self.equal += int((first == second).sum())
        if labels is None or len(labels) != len(a):
            return
        right, still = first == labels, second == labels
        self.labelled += len(labels)
        self.both += int((right & still).sum())
        self.only_fp32 += int((right & ~still).sum())
        self.only_candidate += int((still & ~right).sum())

    def drop_interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of the drop, in points."""
        low, high = paired_interval(self.only_fp32, self.only_candidate, self.labelled)
        return 100 * low, 100 * high


def _rows(array: NDArray[Any]) -> NDArray[Any]:
    """Returns outputs as [picture, value]."""
    array = np.atleast_1d(array)
    return array.reshape(len(array), math.prod(array.shape[1:]))  # -1 can't be inferred where there are no rows


def _energies(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    """Returns the energy of the expected outputs, and that of the differences."""
    wide = a.astype(np.float64)
    signal = float(np.sum(wide * wide))
    if a.shape != b.shape:  # as many rows as an object detector finds: another number of them is another answer
        return signal, math.inf
    other = b.astype(np.float64)
    return signal, float(np.sum((wide - other) ** 2)) if np.isfinite(other).all() else math.inf


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(max(signal, 1e-300) / noise) if math.isfinite(noise) else -math.inf
