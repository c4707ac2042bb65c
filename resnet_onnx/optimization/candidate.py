"""What takes part in a race, and where it runs: the race itself knows neither processes nor models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from resnet_onnx.bench.paired import Contender

PICTURE_SHARES = (0.2, 0.4, 0.2, 0.1, 0.05, 0.05)
"""Parts that the pictures are divided into before anything is chosen: the race sees part 0, and parts 1 to 5 belong to
the attempts to confirm. The first attempt is nearly always the last one, so that each takes half of what is left."""

RACE_PART = 0


class Form(NamedTuple):
    """What the predictions of a candidate depend on: candidates of one form differ in speed alone."""

    runtime: str
    precision: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision}"


@dataclass(frozen=True, kw_only=True, order=True)
class Candidate:
    """One way to run the network.

    Attributes:
        precision: ``fp32``, ``bf16``, ``fp16`` or ``int8``.
        threads: CPU threads in all, as ``RuntimeOptions.threads``; 0 where the runtime does not compute with them.
    """

    runtime: str
    precision: str
    batch: int
    streams: int = 1
    threads: int = 0

    def __str__(self) -> str:
        return f"{self.form} · {self.batch} · {self.streams} · {self.threads}"

    @property
    def form(self) -> Form:
        """What its predictions depend on."""
        return Form(self.runtime, self.precision)

    @property
    def at_once(self) -> int:
        """Pictures that are being computed at any moment, all streams together.

        By Little's law (Operations Research 9, 1961) the mean time of a run is this number times the time from one
        picture to the next.
        """
        return self.batch * self.streams


@dataclass(frozen=True, kw_only=True)
class PairedDecisions:
    """Pictures by which of two networks classifies them correctly, as ``parity.proportions`` counts them.

    Attributes:
        lost: Pictures that only the original is right on.
        won: Pictures that only the form is right on.
        pictures: All, with those that both or none are right on.
    """

    lost: int
    won: int
    pictures: int


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Fresh runs of a candidate, one after the other in each stream; every run is of a whole batch.

    Attributes:
        latencies_s: Seconds of each run, all streams, in their order.
        between_s: Seconds from one completed run to the next, all streams together, in their order: with one stream
            those of each run, with several one value a slice, as in ``bench``.
        paces_s: The processor's own pace before and after each slice (``clock.pace``).
    """

    latencies_s: Sequence[float]
    between_s: Sequence[float]
    paces_s: Sequence[float] = ()


class CandidateFailed(Exception):
    """A candidate could not be opened, or broke down; the reason is its text."""


class Track(Protocol):
    """Where candidates run: in processes of their own, or in a test on a clock of its own.

    At most two candidates are open at a time: the race closes what it does not need.
    """

    def now(self) -> float:
        """Seconds spent so far; opening, compiling and warming up count."""

    def open(self, candidate: Candidate) -> Contender:
        """Opens and warms up a candidate; raises ``CandidateFailed``.

        Where its ``turn`` raises ``ContenderFailed``, the text of that error's cause is the reason that is reported.
        """

    def close(self, candidate: Candidate) -> None:
        """Ends an open candidate; one that has failed too."""

    def run(self, candidate: Candidate, *, runs: int, seconds: float) -> Runs:
        """Times fresh runs of an open candidate: as many as `runs`, and none begins after `seconds`.

        Raises:
            CandidateFailed: It broke down.
        """

    def accuracy(self, form: Form, part: int) -> PairedDecisions:
        """Compares the decisions of a form with the original's on the `part`-th of ``PICTURE_SHARES``.

        It opens the form by itself. The parts share no picture, and each holds classes alike.

        Raises:
            CandidateFailed: It broke down.
        """
