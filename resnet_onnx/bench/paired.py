"""Two targets measured against each other in turns, until the verdict is certain.

Each is opened in a worker process of its own. They run in blocks of four turns, ABBA or BAAB by a coin, so that what
drifts on the machine hits both alike, and what does not is as likely to hit either: the coin is what the interval's
validity rests on (``always_valid``). A block's log ratio is the unit; a turn is a single run, or ``TURN_S`` of runs.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from numpy.typing import NDArray

from resnet_onnx.bench.always_valid import RatioInterval, RatioSequence
from resnet_onnx.bench.clock import Disturbance, Slice, Turn, Watch
from resnet_onnx.bench.equivalence import TOLERANCE, Verdict, check_tolerance, deciding_factor, verdict
from resnet_onnx.bench.feed_factory import FeedFactory
from resnet_onnx.bench.plan import LONGEST_WARM_UP_S
from resnet_onnx.bench.worker import Opened
from resnet_onnx.bench.worker_process import WorkerProcess
from resnet_onnx.results.bench import WarmUp
from runtimes.errors import RunFailed, ToolkitError, UnsupportedModel, UsageError
from runtimes.spec import Feeds, Scope, Target

Progress = Callable[[str], None]
Order = Literal["ABBA", "BAAB"]
ORDERS: tuple[Order, Order] = ("ABBA", "BAAB")
"""What the coin chooses from; A is the base."""

TURN_S = 0.01
"""Least time of a turn. Longer turns make blocks no better: what disturbs them lasts for seconds."""

_LOOKS = 1.02
"""Growth of the number of blocks from one look at the interval to the next; it has the same error at every one."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison.

    Attributes:
        target: With its streams and threads.
        feeds: Enlarged to the batch in the worker process.
        feed_factory: What makes the feeds of each run, which is then timed too, in place of `feeds`.
        python: Interpreter of another environment to run it in; None is this one.
    """

    target: Target
    feeds: Feeds
    batch: int = 1
    scope: Scope = "device"
    feed_factory: FeedFactory | None = None
    python: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PairedPlan:
    """For how long two sides are compared, and what decides.

    Attributes:
        duration_s: Time of all turns at most; opening and warm-up excluded.
        tolerance: Relative change that does not matter.
        seed: Of the coin; None is a fresh one.
    """

    duration_s: float = 60.0
    tolerance: float = TOLERANCE
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.duration_s < math.inf:
            raise UsageError(f"duration must be a number of seconds above 0, not {self.duration_s}")
        check_tolerance(self.tolerance)

    @property
    def warm_up_limit_s(self) -> float:
        """The most that the warm-up of a side may take."""
        return min(LONGEST_WARM_UP_S, self.duration_s)


class ContenderFailed(Exception):
    """A contender could not take its turn; its own ``error`` says why."""


class Contender(Protocol):
    """What takes turns: an opened side, or a test's stand-in."""

    def turn(self) -> Turn:
        """Runs for one turn; its `run_s` is the time of one picture. Raises ``ContenderFailed``."""


class OpenedSide:
    """A side that is open and warm; use it as a context manager, which ends its process.

    It may meet several others, one after the other.
    """

    def __init__(self, side: Side, *, warm_up_s: float = LONGEST_WARM_UP_S) -> None:
        self.side = side
        self._warm_up_s = warm_up_s
        self._worker = WorkerProcess(side.target.runtime, python=side.python)
        self._worker.send("open", target=side.target)
        self.opened: Opened | None = None
        self.warm_up: WarmUp | None = None
        self.error: ToolkitError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends its process."""
        self._worker.close()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._worker.pid

    def prepare(self) -> None:
        """Waits until it is open, and warms it up; where it can't run the model, ``error`` says why.

        Raises:
            UserError: It can't be used, or its environment has no such package or speaks another protocol.
            RuntimeUnavailable: The runtime is not in its environment.
        """
        try:
            self.opened = self._worker.receive()
            self._warm_up()
        except (UnsupportedModel, RunFailed) as error:
            self.error = error

    def take(self, side: Side) -> None:
        """Becomes another side of the same target, in the same process; as ``prepare``."""
        if side.target != self.side.target:
            raise ValueError("another target needs another process")
        self.side = side
        try:
            with self._worker.awake():
                self._worker.call("release", row=0)
                self._warm_up()
        except (UnsupportedModel, RunFailed) as error:
            self.error = error

    def _warm_up(self) -> None:
        self.warm_up = self._worker.call(
            "prepare",
            row=0,
            feeds=self.side.feeds,
            batch=self.side.batch,
            scope=self.side.scope,
            feed_factory=self.side.feed_factory,
            limit_s=self._warm_up_s,
        )

    def turn(self) -> Turn:
        """Runs once, or for ``TURN_S`` where a run is shorter; the time is that of one picture, all streams together.

        Short runs are preceded by an untimed one, which finds the other side's data in the caches.
        """
        run_s = self.warm_up.run_s if self.warm_up is not None else 0.0
        try:
            with self._worker.awake():
                found: Turn = self._worker.call(
                    "turn", row=0, seconds=max(0.0, TURN_S - run_s), discard=1 if run_s < TURN_S else 0
                )
        except RunFailed as error:
            self.error = error
            raise ContenderFailed from error
        return Turn(run_s=found.run_s / self.side.batch, spent_s=found.spent_s)

    def sample(self, seconds: float) -> Slice:
        """Takes single runs alone for about `seconds`; raises ``ContenderFailed``."""
        try:
            with self._worker.awake():
                taken: Slice = self._worker.call("sample", row=0, seconds=seconds, discard=1)
        except RunFailed as error:
            self.error = error
            raise ContenderFailed from error
        return taken

    def computed(self) -> list[tuple[Feeds, Mapping[str, NDArray[Any]]]]:
        """Returns what the last run of each stream was given, and what it made of that; raises as ``turn``."""
        try:
            with self._worker.awake():
                found: list[tuple[Feeds, Mapping[str, NDArray[Any]]]] = self._worker.call("computed", row=0)
        except RunFailed as error:
            self.error = error
            raise ContenderFailed from error
        return found

    def report(self) -> SideReport:
        """Returns what it says of itself."""
        machine = outputs = None
        if self.error is None and self.warm_up is not None:
            with self._worker.awake():
                machine = self._worker.call("describe")
                outputs = self._worker.call("outputs", row=0)
        return SideReport(opened=self.opened, warm_up=self.warm_up, machine=machine, outputs=outputs, error=self.error)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Four turns.

    Attributes:
        turns_s: Seconds of one picture in each turn, in the order in which they ran.
        spent_s: Wall time of the four.
    """

    order: Order
    turns_s: tuple[float, float, float, float]
    spent_s: float = 0.0

    @property
    def base_s(self) -> float:
        """Mean time of a picture in the base's turns."""
        return self._mean("A")

    @property
    def new_s(self) -> float:
        """Mean time of a picture in the new side's turns."""
        return self._mean("B")

    @property
    def log_ratio(self) -> float:
        """Logarithm of the new side's speed over the base's."""
        return math.log(self.base_s / self.new_s)

    def _mean(self, side: str) -> float:
        return sum(s for who, s in zip(self.order, self.turns_s, strict=True) if who == side) / 2


def blocks(base: Contender, new: Contender, *, coin: random.Random) -> Iterator[Block]:
    """Yields blocks for ever; raises ``ContenderFailed`` where one does."""
    while True:
        order = coin.choice(ORDERS)
        first, second, third, fourth = ((base if who == "A" else new).turn() for who in order)
        yield Block(
            order=order,
            turns_s=(first.run_s, second.run_s, third.run_s, fourth.run_s),
            spent_s=first.spent_s + second.spent_s + third.spent_s + fourth.spent_s,
        )


StoppingRule = Callable[[RatioSequence], bool]
"""Whether what is known of a ratio is enough. It may look as often as it likes: the interval holds at every look."""


def settled(tolerance: float) -> StoppingRule:
    """Returns the rule that ends with a verdict."""
    return lambda sequence: verdict(sequence.interval().ends, tolerance) != "inconclusive"


@dataclass(kw_only=True)
class PairedRun:
    """What came of two contenders.

    Attributes:
        blocks: In their order; ``add`` appends to them.
        sequence: Their log ratios.
        stopped: Whether the rule ended it, and not the time.
    """

    blocks: list[Block] = field(default_factory=list)
    sequence: RatioSequence = field(init=False)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.sequence = RatioSequence(block.log_ratio for block in self.blocks)

    def add(self, block: Block) -> None:
        """Takes the next block."""
        self.blocks.append(block)
        self.sequence.add(block.log_ratio)

    @property
    def found(self) -> RatioInterval | None:
        """The interval over all blocks; None before the first."""
        return self.sequence.interval() if self.blocks else None

    @property
    def spent_s(self) -> float:
        """Time of all turns."""
        return sum(block.spent_s for block in self.blocks)

    def verdict(self, tolerance: float) -> Verdict:
        """Returns the verdict on new over base."""
        return "inconclusive" if self.found is None else verdict(self.found.ends, tolerance)

    def seconds_to_decide(self, tolerance: float) -> float | None:
        """Returns about how much time in all a verdict would take; None where it is there, or none would do."""
        if self.found is None or self.verdict(tolerance) != "inconclusive":
            return None
        factor = deciding_factor(self.found, tolerance)
        return None if factor is None else self.spent_s * factor


def run_pair(
    base: Contender,
    new: Contender,
    *,
    enough: StoppingRule,
    duration_s: float,
    coin: random.Random,
    into: PairedRun | None = None,
    progress: Callable[[PairedRun], None] = lambda _: None,
) -> PairedRun:
    """Runs blocks until the rule says that it is enough, or no further block fits into the time.

    Raises:
        ContenderFailed: One did; what was measured until then is in `into`.
    """
    run, next_look = PairedRun() if into is None else into, 1
    for block in blocks(base, new, coin=coin):
        run.add(block)
        out_of_time = run.spent_s * (1 + 1 / len(run.blocks)) > duration_s
        if len(run.blocks) >= next_look or out_of_time:
            next_look = math.ceil(len(run.blocks) * _LOOKS)
            run.stopped = enough(run.sequence)
            progress(run)
        if run.stopped or out_of_time:
            break
    return run


@dataclass(frozen=True, kw_only=True)
class SideReport:
    """What a side says of itself; None where it was not there to say it.

    Attributes:
        machine: As ``describe_machine`` in its environment.
        outputs: Of the last run.
        error: Why it could not be opened, or failed.
    """

    opened: Opened | None
    warm_up: WarmUp | None
    machine: Mapping[str, Any] | None
    outputs: Mapping[str, NDArray[Any]] | None
    error: ToolkitError | None


@dataclass(frozen=True, kw_only=True)
class PairedMeasurement:
    """Two sides, compared; `run` has no blocks where one of them failed before the first."""

    base: SideReport
    new: SideReport
    run: PairedRun
    disturbance: Disturbance


def measure_pair(base: Side, new: Side, plan: PairedPlan, *, progress: Progress = lambda _: None) -> PairedMeasurement:
    """Opens two sides, warms them up and compares them.

    A side that can't run the model, or whose process dies, has its ``error`` set.

    Raises:
        UserError: A side can't be used, or its environment has no such package or speaks another protocol.
        RuntimeUnavailable: A side's runtime is not in its environment.
    """
    run = PairedRun()
    disturbance = Disturbance()
    with (
        OpenedSide(base, warm_up_s=plan.warm_up_limit_s) as first,
        OpenedSide(new, warm_up_s=plan.warm_up_limit_s) as second,
    ):
        for which, side in (("BASE", first), ("NEW", second)):
            progress(f"opening and warming up {which} on {side.side.target.runtime}")
            side.prepare()
        if first.error is None and second.error is None:
            watch = Watch(family=True)
            with contextlib.suppress(ContenderFailed):
                run_pair(
                    first,
                    second,
                    into=run,
                    enough=settled(plan.tolerance),
                    duration_s=plan.duration_s,
                    coin=random.Random(plan.seed),
                    progress=lambda run: progress(_told(run, plan)),
                )
            disturbance = watch.stop()
        return PairedMeasurement(base=first.report(), new=second.report(), run=run, disturbance=disturbance)


def _told(run: PairedRun, plan: PairedPlan) -> str:
    """Says how a comparison stands."""
    left = f"at most {max(0, math.ceil(plan.duration_s - run.spent_s))} s left"
    ends = run.found.ends if run.found is not None else None
    if run.found is None or ends is None:
        return f"{len(run.blocks)} blocks · {left}"
    return f"{len(run.blocks)} blocks: ratio {run.found.ratio:.3f} ({ends[0]:.3f} – {ends[1]:.3f}) · {left}"
