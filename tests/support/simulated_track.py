"""Candidates on a clock of their own: known speeds, drops and latencies, and the noise of a real machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from resnet_onnx.bench.clock import Turn
from resnet_onnx.bench.paired import Contender, ContenderFailed
from resnet_onnx.optimization.candidate import PICTURE_SHARES, Candidate, CandidateFailed, Form, PairedDecisions, Runs

NOISE = Path(__file__).parents[2] / "benchmarks" / "noise"

Latency = Callable[[np.random.Generator, int], np.ndarray]
"""Makes the times of so many runs, one after the other, in units of the candidate's usual time."""


def recorded(name: str, deviation: float | None = None) -> np.ndarray:
    """Recorded turns as logarithms of the time over the median, in the order of the recording.

    With `deviation` they are scaled so that the log ratios of blocks have that standard deviation.
    """
    turns = np.asarray(json.loads((NOISE / f"{name}.json").read_text())["turns_us"], np.float64)
    logs = np.log(turns / np.median(turns))
    if deviation is None:
        return logs
    four = turns[: len(turns) // 4 * 4].reshape(-1, 4)
    found = np.std(np.log((four[:, 0] + four[:, 3]) / (four[:, 1] + four[:, 2])))
    return logs * deviation / float(found)


def as_recorded(logs: np.ndarray) -> Latency:
    """Times as they followed each other in a recording, from a random moment on."""
    return lambda random, count: np.exp(np.take(logs, np.arange(count) + random.integers(len(logs)), mode="wrap"))


@dataclass
class Entry:
    """What is true of a candidate.

    Attributes:
        speed: Pictures a second.
        latency: How the times of its runs spread; None is the track's noise.
        opening_s: What opening and warming up takes.
        breaks: Fails to open, or breaks down in the turn with this number.
    """

    speed: float
    latency: Latency | None = None
    opening_s: float = 2.0
    breaks: int | None = None


@dataclass
class SimulatedTrack:
    """A track on which time passes as candidates open and run.

    Attributes:
        noise: Logarithms of how much longer turns take than usual, in their order; taken from a random one on.
        drops: Shares of pictures that a form loses and wins.
        pictures: In all parts.
        done: What was measured, as (what, of whom), in its order.
        killed_after: The number of measurements (turns, runs, accuracies) after which the process dies.
    """

    entries: Mapping[Candidate, Entry]
    noise: np.ndarray = field(default_factory=lambda: np.zeros(1))
    seed: int = 0
    drops: Mapping[Form, tuple[float, float]] = field(default_factory=dict)
    pictures: int = 10_000
    killed_after: float = math.inf
    clock_s: float = 0.0
    measured: int = 0
    most_open: int = 0
    done: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self._factors = np.exp(self.noise).tolist()
        self._place = int(self.random.integers(len(self._factors)))
        self._open: set[Candidate] = set()

    def now(self) -> float:
        return self.clock_s

    def open(self, candidate: Candidate) -> Contender:
        entry = self.entries[candidate]
        self.clock_s += entry.opening_s
        if entry.breaks == 0:
            raise CandidateFailed("it has no kernel for that")
        self._open.add(candidate)
        self.most_open = max(self.most_open, len(self._open))
        self.done.append(("open", str(candidate)))
        return _Runner(self, candidate, entry)

    def close(self, candidate: Candidate) -> None:
        self._open.remove(candidate)

    def run(self, candidate: Candidate, *, runs: int, seconds: float) -> Runs:
        assert candidate in self._open
        self.count("runs", str(candidate))
        entry = self.entries[candidate]
        spread = (entry.latency or as_recorded(self.noise))(self.random, runs)
        times = spread * candidate.at_once / entry.speed
        times = times[: max(1, int(np.searchsorted(np.cumsum(times) / candidate.streams, seconds)))]
        self.clock_s += float(times.sum()) / candidate.streams
        return Runs(latencies_s=times.tolist(), between_s=(times / candidate.streams).tolist(), paces_s=[2e-4, 2e-4])

    def accuracy(self, form: Form, part: int) -> PairedDecisions:
        self.count("accuracy", f"{form} part {part}")
        pictures = round(self.pictures * PICTURE_SHARES[part])
        lost, won = self.drops.get(form, (0.0, 0.0))
        found = self.random.multinomial(pictures, [lost, won, 1 - lost - won])
        self.clock_s += pictures / 1000
        return PairedDecisions(lost=int(found[0]), won=int(found[1]), pictures=pictures)

    def count(self, what: str, whose: str) -> None:
        self.measured += 1
        if self.measured > self.killed_after:
            raise Killed
        if what != "turn":
            self.done.append((what, whose))

    def next_factor(self) -> float:
        self._place += 1
        return self._factors[self._place % len(self._factors)]


class Killed(BaseException):
    """The process died."""


class _Runner:
    def __init__(self, track: SimulatedTrack, candidate: Candidate, entry: Entry) -> None:
        self._track, self._name, self._breaks = track, str(candidate), entry.breaks
        self._picture_s, self._turn_s, self._turns = 1 / entry.speed, candidate.at_once / entry.speed, 0

    def turn(self) -> Turn:
        track = self._track
        self._turns += 1
        if self._turns == self._breaks:
            raise ContenderFailed from CandidateFailed("it was killed by a signal")
        track.count("turn", self._name)
        factor = track.next_factor()
        track.clock_s += self._turn_s * factor
        return Turn(run_s=self._picture_s * factor, spent_s=self._turn_s * factor)
