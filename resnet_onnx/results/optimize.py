"""The document of ``optimize``: the answer with its evidence, the limits, every candidate and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from resnet_onnx.results.bundle import Latency, Limit
from resnet_onnx.results.document import Amount, Count, Document, Fraction, Positive, Whole, check_ends

State = Literal["refused", "unavailable", "eliminated", "tied", "confirmed", "failed"]
Goal = Literal["throughput", "latency", "cost"]
Timed = Literal["pictures", "device", "end-to-end"]
"""What a run covers: picture files to scores, or what ``bench`` calls so."""

Ends = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Speed over another way to run the same network, measured in turns.

    Attributes:
        runtime: The other way.
        ratio: Images per second over those of the other; None where it could not be measured.
        ci95: Its interval, which holds whenever the measurement was stopped.
        reason: Why there is no ratio, or "".
    """

    runtime: str
    ratio: Positive | None
    ci95: Ends | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        check_ends("ci95", self.ci95)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The largest rate of random arrivals that is answered within the limit of the 99th percentile.

    Attributes:
        max_batch: Pictures that the server takes together at most.
        max_wait_ms: How long the first of them waits for others at most.
        low: A rate that is met for certain, or 0.
        high: One that is broken for certain, or at which the engine is always busy.
    """

    images_per_second: Amount
    max_batch: Count
    max_wait_ms: Amount
    low: Amount
    high: Amount


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The engine that was chosen, and what was confirmed of it on fresh samples.

    Attributes:
        threads: CPU threads over all streams together; None where it does not compute with them.
        over_reference: Images per second over those of the bundle's reference, in turns; None where there is none.
        top1_drop: Points of top-1 that it loses; None where accuracy can't be judged.
        agreement: Share of the pictures that it decides as the original; None where it was not counted.
        pace_us: What a fixed piece of arithmetic took beside the confirmation, microseconds.
        gains: Over torch eager and torch.compile.
        ceiling_fraction: Share of this machine's peak in the precision; None where either is unknown.
        cost_per_million: Of a million pictures; None without a price.
        capacity: With random arrivals; None without them.
    """

    sentence: str
    runtime: str
    precision: str
    batch: Count
    streams: Count
    threads: Count | None
    images_per_second: Positive
    images_per_second_ci95: Ends | None
    over_reference: Positive | None = None
    over_reference_ci95: Ends | None = None
    latency_ms: Latency
    top1_drop: float | None
    top1_drop_ci95: Ends | None
    agreement: Fraction | None = None
    pace_us: Positive | None = None
    gains: Sequence[Gain] = ()
    ceiling_fraction: Amount | None = None
    cost_per_million: Amount | None = None
    capacity: Capacity | None = None

    def __post_init__(self) -> None:
        check_ends("images_per_second_ci95", self.images_per_second_ci95)
        check_ends("over_reference_ci95", self.over_reference_ci95)
        check_ends("top1_drop_ci95", self.top1_drop_ci95)


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """One candidate and what became of it.

    Attributes:
        batch: None where the form of the model was refused or is unavailable at every batch, as the two that follow.
        reason: Why it is in that state.
        images_per_second: About: the answer's confirmed rate times the paired ratio; None where it was not measured.
        over_reference: Likewise.
        over_answer: Its speed over the answer's, measured in turns with it or over a chain of others.
        over_answer_ci95: Its interval.
        seconds: Spent on it: opening, warm-up and turns.
    """

    runtime: str
    precision: str
    batch: Count | None
    streams: Count | None
    threads: Count | None
    state: State
    reason: str
    images_per_second: Positive | None = None
    over_reference: Positive | None = None
    over_answer: Positive | None = None
    over_answer_ci95: Ends | None = None
    latency_ms: Positive | None = None
    seconds: Amount = 0.0

    def __post_init__(self) -> None:
        check_ends("over_answer_ci95", self.over_answer_ci95)

    @property
    def form(self) -> str:
        """Runtime and precision."""
        return f"{self.runtime} {self.precision}".rstrip()

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.batch is None:
            return self.form
        return " · ".join([self.form, *(str(n) for n in (self.batch, self.streams, self.threads) if n is not None)])


@dataclass(frozen=True, kw_only=True)
class Form:
    """The model in one precision on one runtime, and how it was admitted.

    Attributes:
        proof: What it was held against: ``parity``, or the gate of the conversion: ``top1`` or ``sqnr``.
        error: Relative RMSE, of parity.
        budget: What is allowed, of parity.
        sqnr_db: Signal over noise of the outputs, decibels.
        agreement: Share of the pictures decided as in float32.
        pictures: Compared.
        batches: Sizes of the batches that were compared.
    """

    runtime: str
    precision: str
    admitted: bool
    reason: str
    proof: str
    error: float | None = None
    budget: float | None = None
    sqnr_db: float | None = None
    agreement: Fraction | None = None
    pictures: Whole = 0
    batches: Sequence[int] = ()
    seconds: Amount = 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the race: a challenger in turns with the best so far.

    Attributes:
        best: Who was best before, in words; "" for the first.
        ratio: The challenger's images per second over those of the best.
        outcome: ``faster``, ``slower``, ``tied``, or why it ended otherwise.
        at_s: Seconds of the budget that were spent when it ended.
    """

    challenger: str
    best: str
    ratio: Positive | None
    ci95: Ends | None
    blocks: Whole
    outcome: str
    at_s: Amount


@dataclass(frozen=True, kw_only=True)
class Optimize(Document):
    """The fastest engine that meets the limits, or why there is none.

    Attributes:
        sha256: Of the ONNX file that was the start.
        timed: What a run covers.
        answer: None where no candidate meets the limits, or none can be shown to.
        nearest: Where there is no answer: the candidate that comes nearest, and what it misses.
        limits: Of the answer, or of the nearest candidate.
        forms: How each form of the model was admitted.
        path: The race, step by step.
        ties: What is as fast as the answer, and what it would give.
        next_steps: What to try next, a line each.
        bundle: The folder that was written; None without ``--out``.
        journal: Where every finished step is.
        budget_s: What was allowed.
        spent_s: What it took, all of it.
        notes: What the user should know of how model, labels and pictures were read.
    """

    kind: ClassVar[str] = "optimize"

    model: str
    precision: str
    sha256: str | None = None
    goal: Goal
    timed: Timed
    data: str | None
    answer: Answer | None
    nearest: str | None = None
    limits: Sequence[Limit] = ()
    candidates: Sequence[CandidateRow] = ()
    forms: Sequence[Form] = ()
    path: Sequence[Step] = ()
    ties: Sequence[str] = ()
    next_steps: Sequence[str] = ()
    bundle: str | None = None
    journal: str | None = None
    budget_s: Positive
    spent_s: Amount
    notes: Sequence[str] = ()

    @property
    def results(self) -> Sequence[CandidateRow]:
        """The rows."""
        return self.candidates


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """A candidate that would be tried."""

    runtime: str
    precision: str
    batch: Count
    streams: Count
    threads: Count | None
    expected_images_per_second: Positive


@dataclass(frozen=True, kw_only=True)
class OptimizeDryRun(Document):
    """What ``--dry-run`` prints: the candidates in the order in which they would be tried.

    Attributes:
        unavailable: What would not be tried, and why.
        expected_s: About what everything would take.
    """

    kind: ClassVar[str] = "optimize"

    model: str
    timed: Timed
    candidates: Sequence[PlannedRow]
    unavailable: Sequence[CandidateRow]
    budget_s: Positive
    expected_s: Amount
    notes: Sequence[str] = ()
