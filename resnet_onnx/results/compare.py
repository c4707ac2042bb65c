"""The document of ``compare``: two saved benchmarks, or two models measured in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from resnet_onnx.results.bench import BenchModel, DisturbanceRecord, WarmUp
from resnet_onnx.results.document import Amount, Document, Environment, ErrorRecord, Positive, Whole, check_ends


@dataclass(frozen=True, kw_only=True)
class PairedBlocks:
    """Every block of a row that was measured in turns, in their order.

    Attributes:
        orders: ``ABBA`` or ``BAAB``, as the coin fell; A is BASE.
        turns_s: Seconds of one picture in each of the four turns, as they ran.
        spent_s: Wall time of each block.
    """

    orders: Sequence[Literal["ABBA", "BAAB"]]
    turns_s: Sequence[tuple[Positive, Positive, Positive, Positive]]
    spent_s: Sequence[Amount]

    def __post_init__(self) -> None:
        if not len(self.orders) == len(self.turns_s) == len(self.spent_s):
            counts = f"{len(self.orders)}, {len(self.turns_s)} and {len(self.spent_s)}"
            raise ValueError(f"Expected as many `orders` as `turns_s` and `spent_s`, got {counts}")


@dataclass(frozen=True, kw_only=True)
class ComparedOutputs:
    """What the two sides of a row computed from the same inputs.

    Attributes:
        different: Whether they differ by more than rounding in the coarser precision of the two explains.
        relative_rmse: NEW's distance from BASE, over all outputs the largest; None where they can't be compared.
        limit: What rounding explains.
        top1_agreement: Pictures with the same best class, as a fraction; None where no output holds scores.
        text: In words.
    """

    different: bool
    relative_rmse: Amount | None
    limit: Amount | None
    top1_agreement: Amount | None
    text: str


@dataclass(frozen=True, kw_only=True)
class ComparedSide:
    """One side of a row that was measured in turns.

    Attributes:
        version: Of the runtime; None where it never opened.
        recorded: Options as the runtime set them.
        error: Why it was not measured to its end.
    """

    version: str | None
    device: str | None
    recorded: Mapping[str, Any]
    warm_up: WarmUp | None
    error: ErrorRecord | None


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """One row of both sides.

    Attributes:
        device: Of the new one.
        threads: As requested; None too where a result does not say.
        verdict: ``same``, ``faster``, ``slower`` or ``inconclusive``, which it is also where one was not measured.
        ratio: Images per second of NEW over BASE: below 1 is slower. None where one was not measured.
        ci95: Interval of the ratio; None where there is none. Of rows measured in turns it holds at every moment.
        failed: NEW could not be measured, and BASE could.
        notes: Why it is inconclusive, and what to think of it otherwise.
        measured_s: Time of all turns; of rows measured in turns, as the fields that follow.
        seconds_to_decide: About how much time in all a verdict would take; None where there is one, or none would do.
        outputs: What the two computed; None where one of them failed.
    """

    model: str
    precision: str
    scope: str
    runtime: str
    batch: int
    streams: int
    device: str | None
    threads: int | None
    scenario: str | None
    verdict: str
    ratio: float | None
    ci95: tuple[float, float] | None
    base_images_per_second: float | None
    new_images_per_second: float | None
    failed: bool
    notes: Sequence[str]
    measured_s: Amount | None = None
    seconds_to_decide: Amount | None = None
    outputs: ComparedOutputs | None = None
    base: ComparedSide | None = None
    new: ComparedSide | None = None
    disturbance: DisturbanceRecord | None = None
    blocks: PairedBlocks | None = None

    def __post_init__(self) -> None:
        check_ends("ci95", self.ci95)

    @property
    def block_count(self) -> Whole:
        """Blocks that were run in turns."""
        return len(self.blocks.orders) if self.blocks is not None else 0


@dataclass(frozen=True, kw_only=True)
class PairedModel:
    """A model that was measured in turns with another, and where.

    Attributes:
        python: Interpreter of its environment, where that was another one.
    """

    model: BenchModel
    python: str | None
    environment: Environment | None


FailOn = Literal["slower", "missing", "inconclusive", "different"]
FAIL_ON: tuple[FailOn, ...] = ("slower", "missing")
"""What fails a comparison where nobody said."""


@dataclass(frozen=True, kw_only=True)
class Compare(Document):
    """Two benchmarks compared.

    Attributes:
        paired: Whether both were measured here in turns; otherwise they were saved results.
        passed: Whether nothing of ``fail_on`` was found.
        fail_on: What was asked to fail.
        failures: What of it was found.
        regressed: Whether a row is slower beyond the tolerance, or can't be measured any more.
        tolerance: As a fraction.
        rows: What both have, in the order of BASE.
        missing: Rows that only BASE has, in words.
        extra: Rows that only NEW has, in words.
        different_work: Why the two did not time the same; empty unless it was forced, or two models were measured.
        environment_differs: What differs between the machines, libraries and settings.
        base: The model of BASE, where it was measured here; as ``new``.
    """

    kind: ClassVar[str] = "compare"

    paired: bool = False
    passed: bool = True
    fail_on: Sequence[FailOn] = ()
    failures: Sequence[FailOn] = ()
    regressed: bool
    tolerance: float
    rows: Sequence[ComparedRow]
    missing: Sequence[str]
    extra: Sequence[str]
    different_work: Sequence[str]
    environment_differs: Sequence[str]
    base: PairedModel | None = None
    new: PairedModel | None = None

    @property
    def model(self) -> str:
        """What was compared, in words."""
        names = list(dict.fromkeys(found.model.name for found in (self.base, self.new) if found is not None))
        return " against ".join(names) or ", ".join(dict.fromkeys(row.model for row in self.rows))

    @property
    def precision(self) -> str:
        """Of the new side."""
        return self.rows[0].precision if self.rows else ""

    @property
    def results(self) -> Sequence[ComparedRow]:
        """The rows."""
        return self.rows
