"""What is known of pairs of candidates: who is worse for certain, who are equals, and estimates over all pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_onnx.bench.always_valid import RatioSequence
from resnet_onnx.bench.paired import Block, PairedRun
from resnet_onnx.optimization.candidate import Candidate
from resnet_onnx.optimization.objective import Objective

UNKNOWN = 10.0
"""Standard error of what nothing is known of, on the logarithmic scale."""


class Pair:
    """Two candidates that met, and what is certain of them; what was certain once stays so.

    Attributes:
        base: Who was the best when they met first.
        new: Who challenged it then.
        run: All their blocks.
        legs: Stretches in which they ran.
        weight: One over the variance of the mean log ratio.
        worse: Who is worse for certain, by more than the tolerance where the tie rule prefers it; or None.
        tied: Whether they are equals for certain.
        level: Log ratio of the speeds at which both are equally good.
    """

    def __init__(self, base: Candidate, new: Candidate, objective: Objective, tolerance: float) -> None:
        self.base, self.new = base, new
        self.run = PairedRun()
        self.legs = 0
        self.weight = 0.0
        self.worse: Candidate | None = None
        self.tied = False
        self.level = objective.handicap(new) - objective.handicap(base)
        self._edge = -math.log1p(-tolerance)  # as equivalence.verdict
        self._margins = {
            base: self._edge if objective.prefers(base, new) else 0.0,
            new: self._edge if objective.prefers(new, base) else 0.0,
        }

    def settled(self, sequence: RatioSequence, errors: Mapping[Candidate, float]) -> bool:
        """Returns whether it is certain who is worse, or that they are equals, and keeps that.

        Args:
            sequence: Log ratios of the speeds, new over base.
            errors: How often each of the two may be thrown out wrongly.
        """
        if self.worse is None:
            if sequence.is_below(self.level - self._margins[self.new], error=errors[self.new]):
                self.worse = self.new
            elif sequence.is_above(self.level + self._margins[self.base], error=errors[self.base]):
                self.worse = self.base
        if not self.tied:
            least = min(errors.values())
            self.tied = sequence.is_below(self.level + self._edge, error=least) and sequence.is_above(
                self.level - self._edge, error=least
            )
        return self.worse is not None or self.tied

    def take(self, blocks: Iterable[Block]) -> None:
        """Takes the blocks of a further leg."""
        for block in blocks:
            self.run.add(block)
        self.legs += 1
        scales = self.run.sequence.scales
        self.weight = len(scales) / float(np.mean(scales**2)) if len(scales) else 0.0

    def ends(self, candidate: Candidate) -> tuple[float, float] | None:
        """Returns the 95 % interval of a candidate's speed over the other's."""
        found = self.run.found.ends if self.run.found is not None else None
        return found if found is None or candidate == self.new else (1 / found[1], 1 / found[0])

    def ratio(self, candidate: Candidate) -> float:
        """Returns a candidate's speed over the other's."""
        return math.exp(self.run.sequence.estimate if candidate == self.new else -self.run.sequence.estimate)

    def other(self, candidate: Candidate) -> Candidate:
        """Returns the one that is not this one."""
        return self.base if candidate == self.new else self.new


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """By how much a candidate is better than another one, on the logarithmic scale.

    Attributes:
        error: Standard error; ``UNKNOWN`` where no chain of pairs joins the two.
    """

    better: float
    error: float

    @property
    def is_known(self) -> bool:
        """Whether anything is known of it."""
        return self.error < UNKNOWN / 2


def estimates(candidates: Sequence[Candidate], pairs: Iterable[Pair], ground: Candidate) -> dict[Candidate, Estimate]:
    """Returns by how much each candidate is better than one of them, by least squares over all pairs.

    Each pair weighs by what its blocks deviate.
    """
    index = {candidate: number for number, candidate in enumerate(candidates)}
    known = [pair for pair in pairs if pair.run.blocks]
    base = np.array([index[pair.base] for pair in known], np.intp)
    new = np.array([index[pair.new] for pair in known], np.intp)
    weights = np.array([pair.weight for pair in known])
    found = weights * np.array([pair.run.sequence.estimate - pair.level for pair in known])
    matrix, right = np.diag(np.full(len(index), UNKNOWN**-2.0)), np.zeros(len(index))
    for rows, columns, sign in ((base, base, 1), (new, new, 1), (base, new, -1), (new, base, -1)):
        np.add.at(matrix, (rows, columns), sign * weights)
    np.add.at(right, new, found)
    np.add.at(right, base, -found)
    others = [number for candidate, number in index.items() if candidate != ground]
    inverse = np.linalg.inv(matrix[np.ix_(others, others)])
    values, errors = np.zeros(len(index)), np.zeros(len(index))
    values[others], errors[others] = inverse @ right[others], np.sqrt(np.diag(inverse))
    return {
        candidate: Estimate(better=float(values[number]), error=float(errors[number]))
        for candidate, number in index.items()
    }
