"""A candidate beside float32: equal decisions, the noise of the outputs, the drop of top-1 with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        signal: Energy of the float32 outputs.
        noise: Energy of the differences; infinite where an output is not finite.
        only_fp32: Labelled pictures that float32 alone gets right.
        only_candidate: Labelled pictures that the candidate alone gets right.
        both: Labelled pictures that both get right.
        labelled: Labelled pictures.
    """

    images: int = 0
    equal: int = 0
    signal: float = 0.0
    noise: float = 0.0
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
        """Signal-to-noise ratio of the outputs, decibels."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(max(self.signal, 1e-300) / self.noise) if math.isfinite(self.noise) else -math.inf

    @property
    def drop(self) -> float:
        """Loss of top-1, in points; negative where the candidate is better."""
        return 100 * (self.only_fp32 - self.only_candidate) / max(1, self.labelled)

    def add(self, expected: NDArray[Any], found: NDArray[Any], labels: NDArray[np.int64] | None) -> None:
        """Adds a batch of outputs, [picture, …]."""
        a = expected.reshape(len(expected), -1).astype(np.float64)
        b = found.reshape(len(found), -1).astype(np.float64)
        self.images += len(a)
        self.signal += float(np.sum(a * a))
        self.noise += float(np.sum((a - b) ** 2)) if np.isfinite(b).all() else math.inf
        first, second = a.argmax(axis=1), np.where(np.isfinite(b).all(axis=1), b.argmax(axis=1), -1)
        self.equal += int((first == second).sum())
        if labels is None:
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
