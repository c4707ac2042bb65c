"""The document of ``parity``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from msgspec import UNSET, Meta, Struct, UnsetType

from resnet_onnx.results.document import Amount, Document


@dataclass(frozen=True, kw_only=True)
class OutputDistance:
    """How far one output is from gold (``resnet_onnx.parity.metrics``); `worst_picture` is that picture's error."""

    relative_rmse: float | None
    worst_picture: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    finite: bool = True


@dataclass(frozen=True, kw_only=True)
class OriginalDistance:
    """How far the first output of a quantised model is from the network that it was made from.

    Attributes:
        top1_agreement: Fraction of pictures decided alike, or None where the output does not hold scores.
    """

    relative_rmse: float | None
    top1_agreement: float | None


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One runtime against the gold.

    Attributes:
        relative_rmse: Of the worst output; None where it is not finite.
        top1_agreement: Share of the pictures decided as gold does; None where the output is not a set of scores.
        options: As the runtime set them.
        seconds: Time to open and run.
    """

    runtime: str
    version: str | None = None
    relative_rmse: Amount | None
    budget: Amount | None
    top1_agreement: Amount | None
    passed: bool
    reason: str
    outputs: Mapping[str, OutputDistance] = field(default_factory=dict)
    original: OriginalDistance | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def share(self) -> float | None:
        """The error as a share of its budget; None where either is unknown."""
        if self.relative_rmse is None or not self.budget:
            return None
        return self.relative_rmse / self.budget


@dataclass(frozen=True, kw_only=True)
class ParityPair:
    """Two runtimes against each other."""

    runtime: str
    against: str
    relative_rmse: float | None


@dataclass(frozen=True, kw_only=True)
class BudgetRecord:
    """What is allowed for one output, and why."""

    relative_rmse: float | None = None
    noise: float | None = None
    bound: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """The error behind one node: relative RMSE against gold by runtime, None where that does not show the value.

    Attributes:
        stage: The part of the network that the node belongs to.
    """

    node: str
    stage: str
    errors: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """Where the difference of a runtime that fails begins.

    Attributes:
        node: None where none could be named; operator and stage are then "".
        input_error: Relative RMSE of its worst input.
        cause: What differs between that node and gold's, in words.
        sure: Whether the inputs are sound, the jump is clear and the two nodes have the same name.
        why: How sure, in words.
    """

    runtime: str
    node: str | None
    op_type: str | None
    stage: str | None
    input_error: float | None
    output_error: float | None
    cause: str | None
    sure: bool
    why: str | None

    @property
    def text(self) -> str:
        """The finding as sentences."""
        if self.node is None:
            return f"{self.runtime}: {self.why}"
        where = f"First difference: node {self.node} ({self.op_type}), {self.stage}"
        errors = f"input error {self.input_error:.0e}, output error {self.output_error:.0e}"
        return f"{self.runtime}: {where}: {errors}. {self.cause} {self.why}"


class Localisation(Struct, frozen=True, kw_only=True, rename={"layers": "ladder", "findings": "first_differences"}):
    """The error per layer of all runtimes, and where the failing ones begin to differ: what ``--localize`` found."""

    layers: Sequence[LayerError]
    findings: Sequence[FirstDifference]


@dataclass(frozen=True, kw_only=True)
class Parity(Document):
    """Whether runtimes compute the same function.

    Attributes:
        passed: Over all runtimes.
        gold: What served as the truth, in words.
        original: Of a quantised file: what its fp32 original is.
        pictures: Inputs that were compared.
        notes: What the user should know of how model, labels and pictures were read.
    """

    kind: ClassVar[str] = "parity"

    model: str
    precision: str
    passed: bool
    gold: str
    original: str | None = None
    pictures: Amount
    results: Annotated[Sequence[ParityRow], Meta(min_length=1)]
    pairs: Sequence[ParityPair] = ()
    budgets: Mapping[str, BudgetRecord] | None = None
    localisation: Localisation | UnsetType = UNSET
    notes: Sequence[str] = ()
