"""What "better" means: the goal, and which of two candidates is preferred where they are equally good."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resnet_onnx.optimization.candidate import Candidate

Goal = Literal["throughput", "latency", "cost"]

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""From the widest to the narrowest, by the bits of a significand: 24, 11, 8 and at most 8."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Orders candidates by the goal, and by preference among equals.

    A machine costs the same whoever computes on it, so that the cost of a picture is the price of the machine over the
    throughput: ``cost`` orders as ``throughput`` does. What one could earn with cores that a candidate leaves idle was
    not measured, and does not count.

    Attributes:
        runtimes: The simplest first; one that is not in it comes last.
    """

    goal: Goal = "throughput"
    runtimes: tuple[str, ...] = ()

    def handicap(self, candidate: Candidate) -> float:
        """Returns what is to be taken from the logarithm of a candidate's speed, in pictures a second.

        With ``latency`` as the goal that leaves the time of one run, which is ``Candidate.at_once`` times the time of a
        picture (Little's law). So one measurement of speeds in turns serves all goals.
        """
        return math.log(candidate.at_once) if self.goal == "latency" else 0.0

    def preference(self, candidate: Candidate) -> tuple[int, int, int]:
        """Returns a key that is smaller for what is preferred: wider precision, fewer streams, a simpler runtime."""
        return (
            _rank(PRECISIONS, candidate.precision),
            candidate.streams,
            _rank(self.runtimes, candidate.runtime),
        )

    def prefers(self, one: Candidate, other: Candidate) -> bool:
        """Whether the first would be taken if both were equally good."""
        return self.preference(one) < self.preference(other)


def _rank(names: tuple[str, ...], name: str) -> int:
    return names.index(name) if name in names else len(names)
